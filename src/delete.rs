//! The one step that deletes, for verdicts and the cleanup alike: count,
//! compare with the limit, then all or none. Token by token: ask again
//! (verdicts only), copy into the recycle bin, delete what was copied.

use std::time::Instant;

use log::{error, info, warn};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, RawDocumentBuf};

use crate::api::Api;
use crate::args::Args;
use crate::db_error::DbError;
use crate::reads::Token;
use crate::stop;
use crate::store::Store;
use crate::summary::{Stop, Summary};
use crate::verdict::{Silence, Verdict};
use crate::writes::{Written, unchanged};

/// The server takes documents of 16 MiB; an entry of the bin is a little larger than its token.
const MAX_COPY: usize = (16 << 20) - 1024;

/// A token that is to be deleted.
pub struct Candidate {
    pub id: ObjectId,
    /// What must still hold for it to be copied; what is deleted is then compared with the copy.
    pub guard: Document,
    /// How the log calls it: `[3/60] 名片 '1111'`.
    pub label: String,
    /// Why it is deleted, as the recycle bin says it; safe to store.
    pub reason: String,
    /// The token to ask about again before it is deleted; none for the cleanup.
    pub condemned: Option<Token>,
}

enum Fate {
    /// It is in the recycle bin, or would be.
    Deleted,
    /// Somebody else changed it meanwhile; it was left alone.
    Changed,
    /// It is kept, because the deletion failed or the second answer did not condemn it.
    Failed(String),
    /// A delete was sent, and nobody can say whether it was carried out.
    Unsure,
    /// The second answer was that it is valid; it was refreshed.
    Valid,
    /// It is kept, because the step ended before it.
    Kept,
}

/// Deletes all candidates, or none when they are more than the limit allows of
/// `size` tokens, and counts what became of each. What ends the step early is
/// raised in the summary. The first second question waits for `next_start`.
pub fn run(
    store: &Store,
    api: &Api,
    args: &Args,
    mut next_start: Instant,
    size: usize,
    candidates: &[Candidate],
    summary: &mut Summary,
) {
    let (count, limit) = (candidates.len(), args.max_delete.limit(size, args.shard));
    if summary.stop.is_none() && count > limit {
        summary.raise(Stop::DeleteLimit);
        for candidate in candidates {
            warn!("  🛑 {} 保留: {}", candidate.label, candidate.reason);
        }
        warn!(
            "  🛑 {count} 个 Token 应删除，超过删除上限 {limit} 个，全部保留；确认无误后以同样的选项加 --max-delete {count} 重新运行"
        );
    }
    if summary.stop.is_none() && count > 0 {
        let unfit = store.unfit_to_delete().unwrap_or_else(|error| Some(error.to_string()));
        if let Some(reason) = unfit {
            error!("  🛑 不删除任何 Token: {reason}");
            summary.lose_database(stop::requested());
        }
    }
    let mut silence = Silence::default();
    for candidate in candidates {
        if summary.stop.is_none() && candidate.condemned.is_some() {
            stop::sleep_until(next_start);
            next_start = Instant::now() + args.delay;
        }
        if let Some(signal) = stop::requested() {
            summary.raise(Stop::Signal(signal));
        }
        let result = if summary.stop.is_some() {
            Ok(Fate::Kept)
        } else if let Some(token) = &candidate.condemned {
            ask_again(store, api, token, candidate, &mut silence, summary)
        } else {
            move_to_bin(store, candidate)
        };
        let fate = result.unwrap_or_else(|(fate, error)| {
            error!("  ❌ {} 无法继续，不再删除任何 Token: {error}", candidate.label);
            summary.lose_database(stop::requested());
            fate
        });
        // Also when no other candidate follows: this one was left undone.
        if let (Fate::Kept, Some(signal)) = (&fate, stop::requested()) {
            summary.raise(Stop::Signal(signal));
        }
        count_fate(&fate, candidate, store.dry_run, summary);
        if silence.is_long() && summary.stop.is_none() {
            error!("  🛑 API 连续没有应答，不再删除任何 Token");
            summary.raise(Stop::ApiUnreachable);
        }
    }
}

/// Says and counts what became of a candidate. A token of the cleanup has its
/// count as one of the run's already.
fn count_fate(fate: &Fate, candidate: &Candidate, is_dry_run: bool, summary: &mut Summary) {
    let (label, is_verdict) = (&candidate.label, candidate.condemned.is_some());
    let mut count_failure = |reason: &str| {
        if is_verdict {
            summary.fail(reason);
        } else {
            summary.cleanup_failed = true;
        }
    };
    match fate {
        Fate::Deleted if is_verdict => {
            let verb = if is_dry_run { "试运行: 将删除" } else { "已删除" };
            info!("  🗑️ {verb}失效 Token: {label}");
            summary.counts.deleted += 1;
        }
        Fate::Deleted => summary.counts.cleaned += 1,
        Fate::Changed => {
            info!("  ⏭️ {label} 跳过: Token 已被其他程序更改");
            summary.counts.skipped += usize::from(is_verdict);
        }
        Fate::Failed(reason) => {
            warn!("  ⚠️ {label} 未删除，Token 保留: {reason}");
            count_failure(reason);
        }
        Fate::Unsure => {
            warn!("  ⚠️ {label} 不确定是否已删除: Token 仍在原处或在回收站中");
            count_failure("不确定是否已删除");
        }
        Fate::Valid => {
            info!("  ✅ {label} 再次询问: Token 有效");
            summary.counts.success += 1;
        }
        Fate::Kept => summary.counts.withheld += usize::from(is_verdict),
    }
}

/// What became of a candidate; with an error when the whole step ends with it.
type Decided = Result<Fate, (Fate, DbError)>;

/// The second question, on a connection of its own. Only the same answer again deletes.
fn ask_again(
    store: &Store,
    api: &Api,
    token: &Token,
    candidate: &Candidate,
    silence: &mut Silence,
    summary: &mut Summary,
) -> Decided {
    let verdict = api.ask_afresh(token, silence);
    summary.any_valid |= matches!(verdict, Verdict::Valid);
    match verdict {
        Verdict::Invalid(_) | Verdict::NoAnswer { .. } if stop::requested().is_some() => Ok(Fate::Kept),
        Verdict::Invalid(_) => move_to_bin(store, candidate),
        Verdict::Unclear(reason) | Verdict::NoAnswer { reason, .. } => Ok(Fate::Failed(reason)),
        Verdict::Valid => match store.mark_used(token) {
            Ok(Written::Done | Written::Would) => Ok(Fate::Valid),
            Ok(Written::Changed) => Ok(Fate::Changed),
            Err(error) if error.is_fatal() => Err((Fate::Failed(error.to_string()), error)),
            Err(error) => Ok(Fate::Failed(error.to_string())),
        },
    }
}

/// Copies, then deletes if nothing has changed since. An error ends the whole step.
fn move_to_bin(store: &Store, candidate: &Candidate) -> Decided {
    let kept = |error| (Fate::Kept, error);
    let Some(copy) = store.find_one(&store.tokens, candidate.guard.clone()).map_err(kept)? else {
        return Ok(Fate::Changed);
    };
    let filter = match unchanged(candidate.id, &copy) {
        Ok(filter) => filter,
        Err(error) => return Ok(Fate::Failed(error.to_string())),
    };
    if copy.as_bytes().len() > MAX_COPY {
        return Ok(Fate::Failed("文档过大，无法放入回收站".to_owned()));
    }
    let entry = store.copy_into_bin(&copy, &candidate.reason).map_err(kept)?;
    let take_copy_out = || {
        if let Err(error) = store.take_out_of_bin(entry) {
            warn!("  ⚠️ {} Token 保留，但它的副本留在回收站中: {error}", candidate.label);
        }
    };
    let error = match store.delete(candidate.id, filter) {
        (_, Ok(Written::Would)) => return Ok(Fate::Deleted),
        (_, Ok(Written::Done)) => return ensure_copied(store, candidate, &copy, entry),
        (1, Ok(Written::Changed)) => {
            take_copy_out();
            return Ok(Fate::Changed);
        }
        (1, Err(error @ DbError::Refused(_))) => {
            take_copy_out();
            return Err(kept(error));
        }
        (_, Ok(Written::Changed)) => None,
        (_, Err(error)) => Some(error),
    };
    // A try failed, and may have deleted all the same: the copy stays, a look decides the count.
    let fate = match store.exists(candidate.id) {
        Ok(false) => ensure_copied(store, candidate, &copy, entry)?,
        // It may still be carried out.
        Ok(true) if matches!(error, Some(DbError::Lost(_))) => Fate::Unsure,
        Ok(true) => {
            Fate::Failed(error.as_ref().map_or("Token 已被其他程序更改".to_owned(), ToString::to_string))
        }
        Err(lost) => return Err((Fate::Unsure, lost)),
    };
    match error {
        Some(error) if error.is_fatal() => Err((fate, error)),
        _ => Ok(fate),
    }
}

/// Of a token that is gone. A restore may have put it back, and taken its copy out, before the delete that
/// then took it again: it is copied once more.
fn ensure_copied(store: &Store, candidate: &Candidate, copy: &RawDocumentBuf, entry: ObjectId) -> Decided {
    let unsure = |error| (Fate::Unsure, error);
    match store.has(&store.bin, entry) {
        Ok(true) | Err(DbError::Refused(_)) => Ok(Fate::Deleted), // an account that may not look
        Ok(false) if store.exists(candidate.id).map_err(unsure)? => Ok(Fate::Changed),
        Ok(false) => store.copy_into_bin(copy, &candidate.reason).map(|_| Fate::Deleted).map_err(unsure),
        Err(error) => Err((Fate::Deleted, error)),
    }
}
