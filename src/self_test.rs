//! The four checks of `--self-test`. Nothing is ever deleted here.

use log::{error, info, warn};

use crate::api::Api;
use crate::cleanup::expired;
use crate::context::{Context, card_name, last_used, user_name};
use crate::db_error::DbError;
use crate::refresh::{Checked, check};
use crate::store::{Store, Token};
use crate::summary::Summary;

const CLEANUP_DAYS: u32 = 30;

/// Runs the checks and says which passed.
pub fn run(context: &Context) -> Summary {
    let mut summary = Summary::default();
    let mut passed = [false; 4];
    if let Some(store) = context.connect() {
        passed[0] = true;
        let newest = guarded(&mut summary, show_newest(&store)).flatten();
        if let Some(token) = newest {
            passed[1] = true;
            summary.total = 1;
            let refreshed = refresh(context, &store, &token, &mut summary);
            passed[2] = guarded(&mut summary, refreshed).unwrap_or(false);
        } else {
            warn!("⚠️ 没有可以测试的 Token");
        }
        passed[3] = guarded(&mut summary, count_expired(context, &store)).is_some();
    } else {
        summary.database_lost = true;
    }
    let names = ["数据库连接", "Token 存在性", "单个 Token 刷新", "清理功能"];
    for (name, passed) in names.iter().zip(passed) {
        if passed {
            info!("✅ 通过 - {name}");
        } else {
            error!("❌ 失败 - {name}");
        }
    }
    let count = passed.iter().filter(|&&passed| passed).count();
    info!("总计: {count}/{} 个测试通过", names.len());
    summary.broken = count < names.len();
    summary
}

/// Logs an error of the database; the other checks go on.
fn guarded<T>(summary: &mut Summary, result: Result<T, DbError>) -> Option<T> {
    result
        .inspect_err(|error| {
            error!("❌ 数据库不可用: {error}");
            summary.database_lost = true;
        })
        .ok()
}

/// Shows the three most recently updated tokens and returns the first.
fn show_newest(store: &Store) -> Result<Option<Token>, DbError> {
    let (count, newest) = store.newest()?;
    info!("📊 数据库中有 {count} 个 Token");
    if !newest.is_empty() {
        info!("最近的 Token:");
    }
    for token in &newest {
        info!("  - 名片: {}", card_name(token));
        info!("    用户: {}", user_name(token));
        info!("    最后使用: {}", last_used(token));
    }
    Ok(newest.into_iter().next())
}

/// Refreshes one token; an invalid one is reported and kept.
fn refresh(context: &Context, store: &Store, token: &Token, summary: &mut Summary) -> Result<bool, DbError> {
    info!("测试 Token: 名片 '{}'", card_name(token));
    info!("旧的最后使用时间: {}", last_used(token));
    let checked = match &token.access_token {
        Some(access_token) => check(&Api::new(&context.settings, &context.args), access_token, true),
        None => Checked::Failed("没有可用的 access_token".to_owned()),
    };
    match checked {
        Checked::Valid => {
            let now = context.clock.wall_now();
            if context.args.dry_run {
                info!("✅ Token 有效 (试运行: 未写入)");
            } else if store.mark_used(token, now)? {
                info!("新的最后使用时间: {now}");
                info!("✅ 刷新成功");
            } else {
                warn!("⏭️ 跳过: Token 已被其他程序更改");
                summary.skipped = 1;
                return Ok(false);
            }
            summary.success = 1;
            return Ok(true);
        }
        Checked::Invalid(reason) => {
            warn!("⚠️ Token 已失效: {reason} (自检不删除)");
            summary.withheld = 1;
        }
        Checked::Failed(reason) | Checked::Unreachable(reason) => {
            warn!("⚠️ 刷新失败: {reason}");
            summary.failed = 1;
        }
    }
    Ok(false)
}

fn count_expired(context: &Context, store: &Store) -> Result<(), DbError> {
    let days = context.args.cleanup_days.unwrap_or(CLEANUP_DAYS);
    let all = store.entries(None, context.args.shard)?.list;
    let count = expired(&all, context.clock.wall_now(), days).len();
    info!("📊 发现 {count} 个 {days} 天未使用的 Token");
    Ok(())
}
