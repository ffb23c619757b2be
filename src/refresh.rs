//! The run: judge every token, least recently used first, then the delete
//! step, the cleanup, and the statistics.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use mongodb::bson::oid::ObjectId;

use crate::api::Api;
use crate::args::Args;
use crate::cleanup;
use crate::clock::Clock;
use crate::db_error::DbError;
use crate::delete::{self, Candidate};
use crate::reads::{CHUNK, Entry, Token};
use crate::stop;
use crate::store::Store;
use crate::summary::{Stop, Summary};
use crate::verdict::{Silence, Verdict, advice};
use crate::writes::Written;

/// The lines that structure the log.
const DOUBLE_LINE: &str = "============================================================";
const SINGLE_LINE: &str = "------------------------------------------------------------";
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

struct Run<'a> {
    store: &'a Store,
    api: &'a Api,
    args: &'a Args,
    summary: Summary,
    silence: Silence,
    /// How many tokens there were before anything was deleted: the cleanup's limit is a part of them.
    collection_size: usize,
    condemned: Vec<Candidate>,
    /// Valid tokens whose `last_used` was not moved: the cleanup must not take them for unused.
    valid_but_unwritten: HashSet<ObjectId>,
    /// Tokens that were asked before their turn, as controls.
    asked_early: HashSet<ObjectId>,
    next_start: Instant,
    last_progress: Instant,
}

/// One run. Whatever happens is in the summary.
pub fn run(store: &Store, api: &Api, args: &Args) -> Summary {
    let mut run = Run {
        store,
        api,
        args,
        summary: Summary::of("刷新"),
        silence: Silence::default(),
        collection_size: 0,
        condemned: Vec::new(),
        valid_but_unwritten: HashSet::new(),
        asked_early: HashSet::new(),
        next_start: Instant::now(),
        last_progress: Instant::now(),
    };
    if let Err(error) = run.find().and_then(|entries| run.judge_all(&entries)) {
        run.lose_database(&error);
    }
    let condemned = std::mem::take(&mut run.condemned);
    let total = run.summary.counts.total;
    delete::run(store, api, args, run.next_start, total, &condemned, &mut run.summary);
    run.summary.close();
    print_statistics(&run.summary, args.dry_run, !condemned.is_empty());
    if let Some(days) = args.cleanup_days {
        if run.summary.stop.is_some() {
            warn!("🧹 本次不清理: 运行提前结束，或删除被上限拦下");
        } else if run.silence.was_asked() && !run.summary.any_valid {
            warn!("🧹 本次不清理: 询问过的 Token 没有一个有效，不能由此判断谁长期未使用");
        } else {
            let mut decided = std::mem::take(&mut run.valid_but_unwritten);
            decided.extend(condemned.iter().map(|candidate| candidate.id));
            let size = run.collection_size;
            let cleaned = cleanup::run(store, api, args, days, size, &decided, &mut run.summary);
            cleaned.unwrap_or_else(|error| run.lose_database(&error));
        }
    }
    if run.summary.stop.is_none() && args.card.is_none() && stop::requested().is_none() {
        // What is refused here is no failure of the run: the entries stay for the next one.
        match store.purge_bin() {
            Ok(0) => {}
            Ok(count) => info!("🧹 回收站: 已清除 {count} 个超过 30 天的记录"),
            Err(error @ DbError::Lost(_)) => run.lose_database(&error),
            Err(error) => warn!("⚠️ 无法清理回收站: {error}"),
        }
    }
    run.summary
}

impl Run<'_> {
    /// The tokens of the run, least recently used first.
    fn find(&mut self) -> Result<Vec<Entry>, DbError> {
        let Self { store, args, .. } = *self;
        let now = store.clock.wall_now();
        info!("⏰ 运行时间: {now}\n{DOUBLE_LINE}\n🚀 开始刷新报名工具 Token\n{DOUBLE_LINE}");
        if args.dry_run {
            info!("🔍 试运行: 只检查，不写入数据库");
        }
        if let Some(days) = args.max_age_days {
            info!("📊 只刷新 {days} 天内使用过的 Token");
        }
        let since = args.max_age_days.map(|days| now.minus_days(days));
        let entries = store.entries(since, args.shard)?;
        // No shard is meant for these, so the first one reports them.
        let foreign = if args.shard.index == 0 { store.foreign(since)? } else { 0 };
        self.collection_size = match (args.cleanup_days, since) {
            (Some(_), Some(_)) => store.entries(None, args.shard)?.len(),
            _ => entries.len(),
        };
        self.summary.counts.total = entries.len() + foreign;
        if self.summary.counts.total == 0 {
            if !store.has_tokens_collection().unwrap_or(true) {
                warn!("⚠️ 数据库中没有 baoming_tokens 集合；数据库名 (MONGODB_DB_NAME) 是否正确？");
            }
            info!("✅ 没有需要刷新的 Token");
            return Ok(entries);
        }
        info!("📊 找到 {} 个 Token 需要刷新", self.summary.counts.total);
        warn_of_future(&entries, &store.clock);
        info!("{SINGLE_LINE}");
        for _ in 0..foreign {
            self.fail("baoming_tokens 中的一个文档", "_id 不是 ObjectId");
        }
        Ok(entries)
    }

    /// Asks about each token, least recently used first.
    fn judge_all(&mut self, entries: &[Entry]) -> Result<(), DbError> {
        for (chunk_number, chunk) in entries.chunks(CHUNK).enumerate() {
            let mut tokens = self.store.tokens(chunk)?;
            for (position, entry) in chunk.iter().enumerate() {
                let index = chunk_number * CHUNK + position;
                if self.asked_early.contains(&entry.id) {
                    continue;
                }
                if let Some(token) = tokens.remove(&entry.id) {
                    self.refresh(index, token)?;
                } else {
                    let total = self.summary.counts.total;
                    info!("[{}/{total}] ⏭️ 跳过: Token 已被其他程序删除", index + 1);
                    self.summary.counts.skipped += 1;
                }
                if self.silence.is_long() {
                    self.ask_control(entries, index + 1)?;
                }
                if self.summary.stop.is_some() {
                    return Ok(());
                }
                self.tell_progress(index + 1);
            }
        }
        if self.silence.is_total() {
            self.summary.raise(Stop::ApiUnreachable);
        }
        Ok(())
    }

    /// Asks about the most recently used token that is left, to tell broken tokens from a dead API.
    fn ask_control(&mut self, entries: &[Entry], next: usize) -> Result<(), DbError> {
        for (index, entry) in entries.iter().enumerate().skip(next).rev() {
            if let Some(signal) = stop::requested() {
                self.summary.raise(Stop::Signal(signal));
                return Ok(());
            }
            if self.asked_early.contains(&entry.id) {
                continue;
            }
            let Some(token) = self.store.tokens(&[*entry])?.remove(&entry.id) else {
                continue;
            };
            if token.sendable().is_ok() {
                warn!("  ⚠️ 连续多个 Token 没有得到 API 的回答，改问最近使用的 Token");
                self.asked_early.insert(entry.id);
                self.refresh(index, token)?;
                break;
            }
        }
        if self.silence.is_long() {
            self.summary.raise(Stop::ApiUnreachable);
        }
        Ok(())
    }

    /// Asks about one token and writes what follows, all but a deletion.
    fn refresh(&mut self, index: usize, token: Token) -> Result<(), DbError> {
        stop::sleep_until(self.next_start);
        if let Some(signal) = stop::requested() {
            self.summary.raise(Stop::Signal(signal));
            return Ok(());
        }
        self.next_start = Instant::now() + self.args.delay;
        let name = &token.card_name;
        let number = format!("[{}/{}]", index + 1, self.summary.counts.total);
        let card_id = token.card_id.map_or_else(|| "-".to_owned(), ObjectId::to_hex);
        // At once, since each record is a write of its own.
        info!(
            "{number} 名片: {name}\n  用户: {}\n  最后使用: {}\n🔄 刷新 Token: 名片 '{name}' (ID: {card_id})",
            token.user,
            token.used()
        );
        let label = format!("{number} 名片 '{name}'");
        let verdict = self.api.ask(&token, &mut self.silence);
        if let (Verdict::NoAnswer { .. }, Some(signal)) = (&verdict, stop::requested()) {
            self.summary.raise(Stop::Signal(signal)); // it was not tried again
        }
        self.summary.any_valid |= matches!(verdict, Verdict::Valid);
        match verdict {
            Verdict::Valid => return self.mark_used(&label, &token),
            Verdict::Invalid(reason) => {
                warn!("  ⚠️ {label} Token 已失效: {reason}");
                let (id, guard) = (token.id, token.guard());
                self.condemned.push(Candidate { id, guard, label, reason, condemned: Some(token) });
            }
            Verdict::Unclear(reason) | Verdict::NoAnswer { reason, .. } => self.fail(&label, &reason),
        }
        Ok(())
    }

    fn mark_used(&mut self, label: &str, token: &Token) -> Result<(), DbError> {
        match self.store.mark_used(token) {
            Ok(Written::Done) => info!("  ✅ Token 有效，已更新使用时间"),
            Ok(Written::Would) => info!("  ✅ Token 有效 (试运行: 未写入)"),
            Ok(Written::Changed) => {
                self.valid_but_unwritten.insert(token.id);
                info!("  ⏭️ 跳过: Token 已被其他程序更改");
                self.summary.counts.skipped += 1;
                return Ok(());
            }
            Err(error) => {
                self.valid_but_unwritten.insert(token.id);
                self.fail(label, &error.to_string());
                return if error.is_fatal() { Err(error) } else { Ok(()) };
            }
        }
        self.summary.counts.success += 1;
        Ok(())
    }

    fn fail(&mut self, label: &str, reason: &str) {
        warn!("  ⚠️ {label} 刷新失败: {reason}");
        self.summary.fail(reason);
    }

    fn tell_progress(&mut self, done: usize) {
        let counts = &self.summary.counts;
        if self.last_progress.elapsed() >= PROGRESS_INTERVAL && done < counts.total {
            self.last_progress = Instant::now();
            let seconds = self.store.clock.elapsed().as_secs() * (counts.total - done) as u64 / done as u64;
            let minutes = seconds.div_ceil(60);
            let (total, success, failed) = (counts.total, counts.success, counts.failed);
            info!("⏳ 进度: {done}/{total}，成功 {success}，失败 {failed}，大约还需 {minutes} 分钟");
        }
    }

    fn lose_database(&mut self, error: &DbError) {
        error!("❌ 数据库不可用: {error}");
        self.summary.lose_database(stop::requested());
    }
}

fn print_statistics(summary: &Summary, is_dry_run: bool, any_condemned: bool) {
    info!("{SINGLE_LINE}");
    summary.lines().iter().for_each(|line| info!("{line}"));
    if is_dry_run {
        info!("  🔍 试运行: 以上为预计结果，数据库未改动");
    }
    info!("{DOUBLE_LINE}");
    let advice = summary.failure_reason().map_or("请检查网络、DNS 和代理", advice);
    match summary.stop {
        Some(Stop::Signal(_)) => warn!("⏹️ 刷新提前结束: 收到停止信号，其余 Token 下次继续"),
        Some(Stop::Database | Stop::Broken) => {
            error!("⏹️ 刷新提前结束: 数据库不可用或拒绝操作，原因见上；其余 Token 下次继续");
        }
        Some(Stop::ApiUnreachable) => error!("⏹️ 刷新提前结束: API 没有应答；{advice}"),
        None if summary.counts.failed > 0 && !summary.any_valid && !any_condemned => {
            warn!("⚠️ 刷新完成，但没有一个 Token 刷新成功；{advice}");
        }
        None | Some(Stop::DeleteLimit) => info!("🎉 刷新完成"),
    }
    info!("{DOUBLE_LINE}");
}

/// Dates that lie ahead are another zone's wall clock.
pub fn warn_of_future(entries: &[Entry], clock: &Clock) {
    let now = clock.wall_now();
    if let Some(latest) = entries.last().and_then(Entry::last_used)
        && latest.is_ahead_of(now)
    {
        warn!("⚠️ 数据库中最近的 last_used {latest} 晚于现在 {now}: TZ 可能不是桌面程序所在的时区");
    }
}
