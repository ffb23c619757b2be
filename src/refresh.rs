//! The run: judge every token, then the delete step, then the cleanup.

use std::collections::HashSet;
use std::time::Instant;

use log::{debug, error, info, warn};
use mongodb::bson::oid::ObjectId;

use crate::api::{Answer, Api};
use crate::cleanup;
use crate::clock::WallTime;
use crate::context::{Context, DOUBLE_LINE, bin_hint, card_name, last_used, user_name, warn_held_back};
use crate::db_error::DbError;
use crate::output::presentable;
use crate::secret::AccessToken;
use crate::stop;
use crate::store::{CHUNK, Guard, Store, Token};
use crate::summary::Summary;
use crate::verdict::{Verdict, judge};

/// So many unreachable tokens in a row mean that the API is down.
const UNREACHABLE_IN_A_ROW: usize = 5;

const SINGLE_LINE: &str = "------------------------------------------------------------";

/// One run. Whatever happens is in the summary.
pub fn run(context: &Context) -> Summary {
    let Some(store) = context.connect() else {
        return Summary::without_database();
    };
    let mut run = Run {
        context,
        store: &store,
        api: Api::new(&context.settings, &context.args),
        summary: Summary::default(),
        condemned: Vec::new(),
        reached: false,
        unreachable_in_a_row: 0,
        spared: HashSet::new(),
    };
    run.refresh();
    if let Some(days) = context.args.cleanup_days
        && !run.summary.stopped_early()
    {
        if let Err(error) = cleanup::run(context, &store, days, &run.spared, &mut run.summary) {
            run.lose_database(&error);
        }
        run.notice_signal();
    }
    run.purge_bin();
    run.summary
}

/// A token that the API called invalid.
struct Condemned {
    id: ObjectId,
    guard: Guard,
    name: String,
    reason: String,
}

struct Run<'a> {
    context: &'a Context,
    store: &'a Store,
    api: Api,
    summary: Summary,
    condemned: Vec<Condemned>,
    /// Whether the API answered at all.
    reached: bool,
    unreachable_in_a_row: usize,
    /// What a dry run would have refreshed or deleted, so that its cleanup passes over it.
    spared: HashSet<ObjectId>,
}

impl Run<'_> {
    fn refresh(&mut self) {
        let Context { args, clock, .. } = self.context;
        let now = clock.wall_now();
        info!("⏰ 运行时间: {now}");
        info!("{DOUBLE_LINE}");
        info!("🚀 开始刷新报名工具 Token");
        info!("{DOUBLE_LINE}");
        if args.dry_run {
            info!("🔍 试运行: 只检查，不写入数据库");
        }
        if let Some(days) = args.max_age_days {
            info!("📊 只刷新 {days} 天内使用过的 Token");
        }
        let since = args.max_age_days.map(|days| now.minus_days(days));
        if let Err(error) = self.judge_all(since) {
            self.lose_database(&error);
        }
        self.notice_signal();
        self.delete_condemned();
        self.summary.close();
        self.print_summary();
    }

    /// Checks every token, least recently used first.
    fn judge_all(&mut self, since: Option<WallTime>) -> Result<(), DbError> {
        let args = &self.context.args;
        let entries = self.store.entries(since, args.shard)?;
        self.summary.total = entries.list.len() + entries.odd;
        if self.summary.total == 0 {
            info!("✅ 没有需要刷新的 Token");
            return Ok(());
        }
        info!("📊 找到 {} 个 Token 需要刷新", self.summary.total);
        info!("{SINGLE_LINE}");
        if entries.odd > 0 {
            warn!("  ⚠️ 刷新失败: {} 个文档的 _id 不是 ObjectId", entries.odd);
            self.summary.failed += entries.odd;
        }
        let mut next_start = Instant::now();
        for (chunk_number, chunk) in entries.list.chunks(CHUNK).enumerate() {
            let mut tokens = self.store.tokens(chunk)?;
            for (position, entry) in chunk.iter().enumerate() {
                let number = chunk_number * CHUNK + position + 1;
                let Some(token) = tokens.remove(&entry.id) else {
                    info!("[{number}/{}] ⏭️ 跳过: Token 已被其他程序删除", self.summary.total);
                    self.summary.skipped += 1;
                    continue;
                };
                stop::sleep_until(next_start);
                if stop::requested().is_some() {
                    return Ok(());
                }
                next_start = Instant::now() + args.delay;
                self.refresh_token(number, &token)?;
                if self.summary.api_unreachable {
                    return Ok(());
                }
            }
        }
        // Fewer than a row of them, but not one that got through.
        self.summary.api_unreachable = self.unreachable_in_a_row > 0 && !self.reached;
        Ok(())
    }

    /// Checks one token and writes what follows, all but a deletion.
    fn refresh_token(&mut self, number: usize, token: &Token) -> Result<(), DbError> {
        let name = card_name(token);
        let card_id = token.card_id.map_or_else(|| "-".to_owned(), ObjectId::to_hex);
        info!("[{number}/{}] 名片: {name}", self.summary.total);
        info!("  用户: {}", user_name(token));
        info!("  最后使用: {}", last_used(token));
        info!("🔄 刷新 Token: 名片 '{name}' (ID: {card_id})");
        let Some(access_token) = &token.access_token else {
            self.fail("没有可用的 access_token");
            return Ok(());
        };
        // Once waiting as asked did not help, a dead API must not cost a minute per try.
        let is_patient = self.unreachable_in_a_row == 0;
        let checked = check(&self.api, access_token, is_patient);
        if !matches!(checked, Checked::Unreachable(_)) {
            self.reached = true;
            self.unreachable_in_a_row = 0;
        }
        match checked {
            Checked::Valid => return self.mark_used(token),
            Checked::Invalid(reason) => {
                warn!("  ⚠️ Token 已失效: {reason}");
                self.condemned.push(Condemned { id: token.id, guard: token.guard(), name, reason });
            }
            Checked::Failed(reason) => self.fail(&reason),
            Checked::Unreachable(reason) => {
                self.fail(&reason);
                self.unreachable_in_a_row += 1;
                self.summary.api_unreachable = self.unreachable_in_a_row >= UNREACHABLE_IN_A_ROW;
            }
        }
        Ok(())
    }

    fn mark_used(&mut self, token: &Token) -> Result<(), DbError> {
        if self.context.args.dry_run {
            info!("  ✅ Token 有效 (试运行: 未写入)");
            self.spared.insert(token.id);
            self.summary.success += 1;
            return Ok(());
        }
        let now = self.context.clock.wall_now();
        match self.store.mark_used(token, now) {
            Ok(true) => {
                info!("  ✅ Token 有效，已更新使用时间");
                self.summary.success += 1;
            }
            Ok(false) => {
                info!("  ⏭️ 跳过: Token 已被其他程序更改");
                self.summary.skipped += 1;
            }
            Err(error) => {
                self.fail(&error.to_string());
                if error.is_fatal() {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, reason: &str) {
        warn!("  ⚠️ 刷新失败: {reason}");
        self.summary.failed += 1;
    }

    /// The second phase: all condemned tokens or none.
    fn delete_condemned(&mut self) {
        let args = &self.context.args;
        let condemned = std::mem::take(&mut self.condemned);
        let limit = args.max_delete.limit(self.summary.total);
        if !self.summary.stopped_early() && condemned.len() > limit {
            warn_held_back(condemned.len(), limit);
            self.summary.limit_reached = true;
        }
        for token in condemned {
            self.notice_signal();
            if self.summary.stopped_early() || self.summary.limit_reached {
                self.summary.withheld += 1;
                continue;
            }
            let Condemned { id, guard, name, reason } = token;
            if args.dry_run {
                info!("  🗑️ 试运行: 将删除失效 Token: 名片 '{name}'");
                self.spared.insert(id);
                self.summary.deleted += 1;
                continue;
            }
            match self.store.recycle(id, &guard, &reason) {
                Ok(true) => {
                    info!("  🗑️ 已删除失效 Token: 名片 '{name}'");
                    self.summary.deleted += 1;
                }
                Ok(false) => {
                    info!("  ⏭️ 跳过: 名片 '{name}' 的 Token 已被其他程序更改");
                    self.summary.skipped += 1;
                }
                Err(error) => {
                    self.summary.failed += 1;
                    if let DbError::Lost(_) = error {
                        warn!("  ⚠️ 删除失败: 名片 '{name}' 的 Token 仍在原处或在回收站中");
                        self.lose_database(&error);
                    } else {
                        warn!("  ⚠️ 删除失败，Token 保留: 名片 '{name}'，{error}{}", bin_hint(&error));
                    }
                }
            }
        }
    }

    fn print_summary(&self) {
        let summary = &self.summary;
        info!("{SINGLE_LINE}");
        info!("📊 刷新统计:");
        info!("  📝 总计: {} 个", summary.total);
        info!("  ✅ 成功: {} 个", summary.success);
        info!("  ❌ 失败: {} 个", summary.failed);
        info!("  🗑️ 删除: {} 个", summary.deleted);
        for (label, count) in
            [("⏭️ 跳过", summary.skipped), ("🛑 保留", summary.withheld), ("⏸️ 未处理", summary.unprocessed)]
        {
            if count > 0 {
                info!("  {label}: {count} 个");
            }
        }
        if self.context.args.dry_run {
            info!("  🔍 试运行: 以上为预计结果，数据库未改动");
        }
        info!("{DOUBLE_LINE}");
        match summary.stopped() {
            Some("signal") => warn!("⏹️ 刷新提前结束: 收到停止信号，其余 Token 下次继续"),
            Some("database") => error!("⏹️ 刷新提前结束: 数据库不可用，其余 Token 下次继续"),
            Some("api_unreachable") => {
                error!("⏹️ 刷新提前结束: API 无法访问，未删除任何 Token；请检查网络、代理和 API 状态");
            }
            _ => info!("🎉 刷新完成"),
        }
        info!("{DOUBLE_LINE}");
    }

    /// Old entries leave the recycle bin at the end of a complete run. Failing
    /// at that is no failure of the run: the entries stay for the next one.
    fn purge_bin(&self) {
        if self.summary.stopped_early() || self.context.args.dry_run {
            return;
        }
        match self.store.purge_bin() {
            Ok(0) => {}
            Ok(count) => info!("🧹 回收站: 已清除 {count} 个超过 30 天的记录"),
            Err(error) => warn!("⚠️ 无法清理回收站: {error}{}", bin_hint(&error)),
        }
    }

    fn notice_signal(&mut self) {
        self.summary.signal = stop::requested();
    }

    fn lose_database(&mut self, error: &DbError) {
        error!("❌ 数据库不可用: {error}");
        self.summary.database_lost = true;
    }
}

/// What one check says about a token; the texts are safe to show.
pub enum Checked {
    /// The API accepted it.
    Valid,
    /// The API calls it invalid.
    Invalid(String),
    /// The API answered, but nothing is known.
    Failed(String),
    /// The API did not answer.
    Unreachable(String),
}

/// Asks the API about a token and judges the reply.
pub fn check(api: &Api, token: &AccessToken, is_patient: bool) -> Checked {
    let (status, body) = match api.check(token, is_patient) {
        Answer::Reply { status, body } => (status, body),
        Answer::Unreachable(reason) => return Checked::Unreachable(reason),
    };
    match judge(status, &body) {
        Verdict::Valid { info_id } => {
            let info_id = info_id.map_or_else(String::new, |id| format!(", info_id={id}"));
            debug!("  📡 [API] 获取报名详情成功{}", token.redact(&info_id));
            Checked::Valid
        }
        Verdict::Invalid { message } => Checked::Invalid(presentable(&message, Some(token))),
        Verdict::Failed { reason } => Checked::Failed(presentable(&reason, Some(token))),
    }
}
