//! `--restore-hours`: puts back what the recycle bin took.

use log::{error, info, warn};
use mongodb::bson::doc;

use crate::db_error::{DbError, Result};
use crate::reads::BinEntry;
use crate::stop;
use crate::store::Store;
use crate::summary::Summary;
use crate::text::{AccessToken, presentable};
use crate::writes::Written;

/// Restores what was deleted in the last `hours` hours, the latest deletion first.
pub fn run(store: &Store, hours: u32, is_dry_run: bool) -> Summary {
    let mut summary = Summary::of("恢复");
    info!("♻️ 恢复最近 {hours} 小时内删除的 Token...");
    let verb = if is_dry_run { "将恢复" } else { "已恢复" };
    if let Err(error) = restore_all(store, hours, verb, &mut summary) {
        error!("❌ 恢复未完成: {error}");
        summary.lose_database(stop::requested());
    }
    summary.close_after(stop::requested());
    summary.lines().iter().for_each(|line| info!("{line}"));
    summary
}

fn restore_all(store: &Store, hours: u32, verb: &str, summary: &mut Summary) -> Result<()> {
    let entries = store.bin_entries(store.clock.hours_ago(hours))?;
    summary.counts.total = entries.len();
    for id in entries {
        if stop::requested().is_some() {
            return Ok(());
        }
        let Some(document) = store.find_one(&store.bin, doc! { "_id": id })? else {
            info!("  ⏭️ 跳过: 回收站记录已被其他程序取走");
            summary.counts.skipped += 1;
            continue;
        };
        let Some(entry) = BinEntry::read(&document) else {
            warn!("  ⚠️ 回收站记录 {id} 不含 Token，未恢复");
            summary.fail("回收站记录不含 Token");
            continue;
        };
        let shown = describe(store, &entry)?;
        let skip = |reason: &str, summary: &mut Summary| {
            warn!("  ⏭️ 未恢复: {shown}，{reason}");
            summary.counts.skipped += 1;
        };
        if let Some(obstacle) = obstacle(store, &entry)? {
            skip(obstacle, summary);
            continue;
        }
        match store.add(&entry.token, entry.token_id, entry.card_id) {
            Ok(Written::Done | Written::Would) => {
                info!("  ✅ {verb}: {shown}");
                summary.counts.success += 1;
                if let Err(error) = store.take_out_of_bin(entry.id) {
                    warn!("  ⚠️ {shown} 已恢复，但副本仍在回收站中: {error}");
                    if error.is_fatal() {
                        return Err(error);
                    }
                }
            }
            Ok(Written::Changed) => skip("与已有的 Token 重复", summary),
            // Written, but maybe not for good: the copy stays in the bin.
            Err(error @ DbError::Unconfirmed(_)) => {
                warn!("  ⚠️ {verb}，但未经确认，副本留在回收站中: {shown}");
                summary.counts.success += 1;
                return Err(error);
            }
            Err(error) => {
                // What got no answer may still be carried out.
                let what =
                    if matches!(error, DbError::Lost(_)) { "不确定是否已恢复" } else { "未恢复" };
                warn!("  ❌ {what}: {shown}，{error}");
                summary.fail(&error.to_string());
                if !matches!(error, DbError::Other(_)) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// What an entry must not be put back beside.
fn obstacle(store: &Store, entry: &BinEntry) -> Result<Option<&'static str>> {
    if store.exists(entry.token_id)? {
        return Ok(Some("该 Token 已存在"));
    }
    let has_token = entry.card_id.map_or(Ok(false), |card_id| store.card_has_token(card_id))?;
    Ok(has_token.then_some("该名片已有新的 Token"))
}

/// An entry's card, reason and time, safe to show.
fn describe(store: &Store, entry: &BinEntry) -> Result<String> {
    let own = entry.token.get_str("access_token").ok().and_then(AccessToken::new);
    let ids: Vec<_> = entry.card_id.into_iter().collect();
    let name = store.card_names(&ids)?.into_values().next();
    let name = presentable(name.as_deref().unwrap_or("已删除的名片"), own.as_ref());
    let reason = presentable(&entry.reason, own.as_ref());
    Ok(format!("名片 '{name}' (删除于 {}，原因: {reason})", store.clock.wall(entry.deleted_at)))
}
