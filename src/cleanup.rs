//! `--cleanup-days`: moves long-unused tokens to the recycle bin.

use std::collections::HashSet;
use std::time::Instant;

use log::{info, warn};
use mongodb::bson::oid::ObjectId;

use crate::api::Api;
use crate::args::Args;
use crate::clock::WallTime;
use crate::db_error::DbError;
use crate::delete::{self, Candidate};
use crate::reads::{CHUNK, Entry};
use crate::store::Store;
use crate::summary::Summary;

/// Deletes tokens that nobody used for `days` days, under the same limit, of
/// `collection_size` tokens. Passes over those whose fate this run has `decided`.
pub fn run(
    store: &Store,
    api: &Api,
    args: &Args,
    days: u32,
    collection_size: usize,
    decided: &HashSet<ObjectId>,
    summary: &mut Summary,
) -> Result<(), DbError> {
    info!("🧹 清理 {days} 天未使用的 Token...");
    let now = store.clock.wall_now();
    let mut expired = expired(store.entries(None, args.shard)?, now, days);
    expired.retain(|entry| !decided.contains(&entry.id));
    if expired.is_empty() {
        info!("  ✅ 没有需要清理的 Token");
        return Ok(());
    }
    info!("  发现 {} 个过期 Token:", expired.len());
    let mut candidates = Vec::with_capacity(expired.len());
    for chunk in expired.chunks(CHUNK) {
        let tokens = store.tokens(chunk)?;
        for entry in chunk {
            // Somebody may have deleted it since.
            let name = tokens.get(&entry.id).map_or("已删除的 Token", |token| &token.card_name);
            let unused_days = entry.last_used().map_or(0, |at| now.days_since(at));
            info!("    - {name}: 最后使用 {unused_days} 天前");
            candidates.push(Candidate {
                id: entry.id,
                guard: entry.guard(),
                label: format!("名片 '{name}'"),
                reason: format!("{unused_days} 天未使用"),
                condemned: None,
            });
        }
    }
    delete::run(store, api, args, Instant::now(), collection_size, &candidates, summary);
    let cleaned = summary.counts.cleaned;
    if summary.stop.is_some() {
        warn!("  ⏹️ 清理提前结束，已清理 {cleaned} 个过期 Token");
    } else {
        let verb = if args.dry_run { "🔍 试运行: 将清理" } else { "✅ 已清理" };
        info!("  {verb} {cleaned} 个过期 Token");
    }
    Ok(())
}

/// The tokens that nobody used for more than `days` days. A token whose
/// `last_used` is no date is not one of them.
pub fn expired(mut all: Vec<Entry>, now: WallTime, days: u32) -> Vec<Entry> {
    let limit = now.minus_days(days);
    all.retain(|entry| entry.last_used().is_some_and(|at| at < limit));
    all
}
