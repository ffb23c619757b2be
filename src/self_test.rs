//! The four checks of `--self-test`. Nothing is ever deleted here.

use log::{error, info, warn};

use crate::api::Api;
use crate::args::Args;
use crate::cleanup::expired;
use crate::db_error::Result;
use crate::reads::Token;
use crate::refresh::warn_of_future;
use crate::stop;
use crate::store::Store;
use crate::summary::{Stop, Summary};
use crate::verdict::{Silence, Verdict};
use crate::writes::Written;

const CHECKS: [&str; 4] = ["数据库连接", "Token 存在性", "单个 Token 刷新", "清理功能"];
const CLEANUP_DAYS: u32 = 30;

/// Runs the checks that follow the connection and says which passed.
pub fn run(store: &Store, api: &Api, args: &Args) -> Summary {
    let mut summary = Summary::default();
    let mut passed = [true, false, false, false];
    match guarded(&mut summary, show_newest(store)).flatten() {
        Some(token) => {
            passed[1] = true;
            summary.counts.total = 1;
            let refreshed = refresh(store, api, &token, &mut summary);
            passed[2] = guarded(&mut summary, refreshed).unwrap_or(false);
        }
        None => warn!("⚠️ 没有可以测试的 Token"),
    }
    passed[3] = guarded(&mut summary, count_expired(store, args)).is_some();
    report(passed, &mut summary);
    summary
}

/// Says which checks passed; not all is exit 1.
pub fn report(passed: [bool; 4], summary: &mut Summary) {
    for (name, passed) in CHECKS.iter().zip(passed) {
        if passed {
            info!("✅ 通过 - {name}");
        } else {
            error!("❌ 失败 - {name}");
        }
    }
    let count = passed.iter().filter(|&&passed| passed).count();
    info!("总计: {count}/{} 个测试通过", CHECKS.len());
    if count < CHECKS.len() {
        summary.raise(Stop::Broken);
        if let Some(signal) = stop::requested() {
            summary.raise(Stop::Signal(signal));
        }
    }
    summary.close();
}

/// Logs an error of the database; the other checks go on.
fn guarded<T>(summary: &mut Summary, result: Result<T>) -> Option<T> {
    result
        .inspect_err(|error| {
            error!("❌ 数据库不可用: {error}");
            summary.lose_database(stop::requested());
        })
        .ok()
}

/// Shows the three most recently updated tokens and returns the first.
fn show_newest(store: &Store) -> Result<Option<Token>> {
    let (count, newest) = store.newest()?;
    info!("📊 数据库中有 {count} 个 Token");
    if !newest.is_empty() {
        info!("最近的 Token:");
    }
    for token in &newest {
        info!("  - 名片: {}", token.card_name);
        info!("    用户: {}", token.user);
        info!("    最后使用: {}", token.used());
    }
    Ok(newest.into_iter().next())
}

/// Refreshes one token; an invalid one is reported and kept.
fn refresh(store: &Store, api: &Api, token: &Token, summary: &mut Summary) -> Result<bool> {
    let name = &token.card_name;
    info!("测试 Token: 名片 '{name}'");
    info!("旧的最后使用时间: {}", token.used());
    match api.ask(token, &mut Silence::default()) {
        Verdict::Valid => match store.mark_used(token)? {
            Written::Changed => {
                warn!("⏭️ 名片 '{name}' 跳过: Token 已被其他程序更改");
                summary.counts.skipped = 1;
            }
            written => {
                if written == Written::Would {
                    info!("✅ Token 有效 (试运行: 未写入)");
                } else {
                    info!("新的最后使用时间: {}", store.clock.wall_now());
                    info!("✅ 刷新成功");
                }
                summary.counts.success = 1;
            }
        },
        Verdict::Invalid(reason) => {
            warn!("⚠️ 名片 '{name}' Token 已失效: {reason} (自检不删除)");
            summary.counts.withheld = 1;
        }
        Verdict::Unclear(reason) | Verdict::NoAnswer { reason, .. } => {
            warn!("⚠️ 名片 '{name}' 刷新失败: {reason}");
            summary.fail(&reason);
        }
    }
    Ok(summary.counts.success == 1)
}

fn count_expired(store: &Store, args: &Args) -> Result<()> {
    let days = args.cleanup_days.unwrap_or(CLEANUP_DAYS);
    let all = store.entries(None, args.shard)?;
    warn_of_future(&all, &store.clock);
    let count = expired(all, store.clock.wall_now(), days).len();
    info!("📊 发现 {count} 个 {days} 天未使用的 Token");
    Ok(())
}
