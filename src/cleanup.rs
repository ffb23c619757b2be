//! `--cleanup-days`: moves long-unused tokens to the recycle bin.

use std::collections::HashSet;

use log::{info, warn};
use mongodb::bson::oid::ObjectId;

use crate::clock::WallTime;
use crate::context::{Context, bin_hint, card_name, warn_held_back};
use crate::db_error::DbError;
use crate::stop;
use crate::store::{CHUNK, Entry, Store};
use crate::summary::Summary;

/// Deletes tokens that nobody used for `days` days, under the same limit.
///
/// `spared` are tokens that a dry run only pretended to refresh or delete.
pub fn run(
    context: &Context,
    store: &Store,
    days: u32,
    spared: &HashSet<ObjectId>,
    summary: &mut Summary,
) -> Result<(), DbError> {
    let Context { args, clock, .. } = context;
    info!("🧹 清理 {days} 天未使用的 Token...");
    let now = clock.wall_now();
    let all = store.entries(None, args.shard)?.list;
    let mut expired = expired(&all, now, days);
    expired.retain(|entry| !spared.contains(&entry.id));
    if expired.is_empty() {
        info!("  ✅ 没有需要清理的 Token");
        return Ok(());
    }
    info!("  发现 {} 个过期 Token:", expired.len());
    let limit = args.max_delete.limit(all.len());
    let is_held_back = expired.len() > limit;
    for chunk in expired.chunks(CHUNK) {
        let tokens = store.tokens(chunk)?;
        for entry in chunk {
            // Somebody may have deleted it since.
            let name = tokens.get(&entry.id).map_or_else(String::new, card_name);
            info!("    - {name}: 最后使用 {} 天前", unused_days(entry, now));
        }
    }
    if is_held_back {
        warn_held_back(expired.len(), limit);
        summary.limit_reached = true;
        return Ok(());
    }
    for entry in expired {
        if stop::requested().is_some() {
            warn!("  ⏹️ 清理提前结束: 收到停止信号");
            break;
        }
        if args.dry_run {
            summary.cleaned += 1;
            continue;
        }
        let reason = format!("unused for {} days", unused_days(&entry, now));
        match store.recycle(entry.id, &entry.guard(), &reason) {
            Ok(true) => summary.cleaned += 1,
            Ok(false) => info!("  ⏭️ 跳过: Token 已被其他程序更改"),
            Err(error @ DbError::Lost(_)) => return Err(error),
            Err(error) => {
                warn!("  ⚠️ 清理失败，Token 保留: {error}{}", bin_hint(&error));
                summary.cleanup_failed += 1;
            }
        }
    }
    if args.dry_run {
        info!("  🔍 试运行: 将清理 {} 个过期 Token", summary.cleaned);
    } else {
        info!("  ✅ 已清理 {} 个过期 Token", summary.cleaned);
    }
    Ok(())
}

/// The tokens that nobody used for more than `days` days. A token whose
/// `last_used` is no date is not one of them.
pub fn expired(all: &[Entry], now: WallTime, days: u32) -> Vec<Entry> {
    let limit = now.minus_days(days);
    let is_expired = |entry: &Entry| entry.last_used().is_some_and(|at| at < limit);
    all.iter().copied().filter(is_expired).collect()
}

fn unused_days(entry: &Entry, now: WallTime) -> i64 {
    entry.last_used().map_or(0, |at| now.days_since(at))
}
