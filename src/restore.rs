//! `--restore-hours`: puts back what the recycle bin took.

use log::{error, info, warn};

use crate::context::Context;
use crate::db_error::DbError;
use crate::output::presentable;
use crate::stop;
use crate::store::{Restored, Store};
use crate::summary::Summary;

/// Restores what was deleted in the last `hours` hours, the latest deletion first.
pub fn run(context: &Context, hours: u32) -> Summary {
    let Some(store) = context.connect() else {
        return Summary::without_database();
    };
    let mut summary = Summary::default();
    info!("♻️ 恢复最近 {hours} 小时内删除的 Token...");
    if let Err(error) = restore_all(context, &store, hours, &mut summary) {
        error!("❌ 恢复未完成: {error}；请检查数据库和 baoming_tokens_deleted 集合的读写权限");
        summary.database_lost = true;
    }
    summary.close();
    let verb = if context.args.dry_run { "将恢复" } else { "已恢复" };
    info!("📊 恢复统计:");
    info!("  📝 总计: {} 个", summary.total);
    info!("  ✅ {verb}: {} 个", summary.success);
    info!("  ⏭️ 未恢复: {} 个", summary.total - summary.success);
    summary
}

fn restore_all(context: &Context, store: &Store, hours: u32, summary: &mut Summary) -> Result<(), DbError> {
    let entries = store.bin_entries(hours)?;
    summary.total = entries.len();
    for id in entries {
        if stop::requested().is_some() {
            return Ok(());
        }
        let Some(entry) = store.bin_entry(id)? else {
            warn!("  ⚠️ 回收站记录 {id} 不含 Token，未恢复");
            summary.failed += 1;
            continue;
        };
        let names = store.card_names(entry.card_id().into_iter())?;
        let name = names.into_values().next();
        let name = presentable(name.as_deref().unwrap_or("已删除的名片"), None);
        let restored = match store.restore(&entry, context.args.dry_run) {
            Err(error) if !error.is_fatal() => {
                warn!("  ⚠️ 未恢复: 名片 '{name}'，{error}");
                summary.failed += 1;
                continue;
            }
            other => other?,
        };
        let reason = match restored {
            Restored::Yes if context.args.dry_run => {
                info!("  ✅ 将恢复: 名片 '{name}'");
                summary.success += 1;
                continue;
            }
            Restored::Yes => {
                info!("  ✅ 已恢复: 名片 '{name}'");
                summary.success += 1;
                continue;
            }
            Restored::SameIdExists => "该 Token 已存在",
            Restored::CardHasToken => "该名片已有新的 Token",
        };
        warn!("  ⏭️ 未恢复: 名片 '{name}'，{reason}");
        summary.skipped += 1;
    }
    Ok(())
}
