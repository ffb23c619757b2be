//! `--import-json`: loads the desktop application's legacy `baoming_tokens.json`,
//! `{"card_<24 hex>": {"access_token", "uname", "pic", "unionid", "_save_time"}}`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use log::{error, info, warn};
use mongodb::bson::oid::ObjectId;
use serde::Deserialize;
use serde_json::Value;

use crate::context::{Context, DOUBLE_LINE};
use crate::db_error::DbError;
use crate::output::{clean, presentable};
use crate::secret::AccessToken;
use crate::stop;
use crate::store::{NewToken, Store};
use crate::summary::Summary;

#[derive(Deserialize)]
struct LegacyToken {
    access_token: String,
    #[serde(default)]
    uname: String,
    #[serde(default)]
    pic: String,
    #[serde(default)]
    unionid: String,
    /// Unix seconds, with a fraction in some files.
    #[serde(rename = "_save_time")]
    save_time: f64,
}

/// Imports a file. It is read to its end before the database is asked anything.
pub fn run(context: &Context, file: &Path) -> Summary {
    let shown = clean(&file.display().to_string());
    let entries = match read(file) {
        Ok(entries) => entries,
        Err(reason) => {
            error!("❌ 无法导入 {shown}: {reason}；未写入任何数据");
            return Summary::broken();
        }
    };
    let Some(store) = context.connect() else {
        return Summary::without_database();
    };
    info!("📥 导入 {shown}...");
    let mut summary = Summary { total: entries.len(), ..Summary::default() };
    if let Err(error) = import_all(context, &store, entries, &mut summary) {
        error!("❌ 导入未完成: {error}；可以重新运行，已导入的会跳过");
        summary.database_lost = true;
    }
    summary.close();
    info!("{DOUBLE_LINE}");
    info!("  ✅ 成功: {} 个", summary.success);
    info!("  ⏭️ 跳过: {} 个", summary.skipped);
    info!("  ❌ 失败: {} 个", summary.failed);
    info!("  📝 总计: {} 个", summary.total);
    if context.args.dry_run {
        info!("  🔍 试运行: 以上为预计结果，数据库未改动");
    }
    summary
}

fn read(file: &Path) -> Result<BTreeMap<String, Value>, String> {
    let text = fs::read(file).map_err(|error| format!("无法读取文件 ({})", error.kind()))?;
    // serde_json's own text could repeat a piece of the file.
    serde_json::from_slice(&text)
        .map_err(|error| format!("不是有效的 JSON 对象，第 {} 行第 {} 列", error.line(), error.column()))
}

fn import_all(
    context: &Context,
    store: &Store,
    entries: BTreeMap<String, Value>,
    summary: &mut Summary,
) -> Result<(), DbError> {
    let mut imported = HashSet::new();
    for (key, value) in entries {
        if stop::requested().is_some() {
            return Ok(());
        }
        let Some(card_id) = card_id(&key) else {
            warn!("  ⏭️ 跳过: 无法识别的键 '{}'", presentable(&key, None));
            summary.skipped += 1;
            continue;
        };
        let Some(token) = new_token(context, card_id, value) else {
            warn!("  ❌ 失败: 名片 {card_id} 的数据不完整");
            summary.failed += 1;
            continue;
        };
        let names = store.card_names([card_id].into_iter())?;
        let Some(name) = names.get(&card_id).map(|name| presentable(name, Some(&token.access_token))) else {
            warn!("  ⏭️ 跳过: 名片 {card_id} 不存在");
            summary.skipped += 1;
            continue;
        };
        if imported.contains(&card_id) || store.card_has_token(card_id)? {
            info!("  ⏭️ 跳过: 名片 '{name}' 已有 Token");
            summary.skipped += 1;
            continue;
        }
        if !context.args.dry_run {
            match store.add(&token) {
                Err(error) if !error.is_fatal() => {
                    warn!("  ❌ 失败: 名片 '{name}'，{error}");
                    summary.failed += 1;
                    continue;
                }
                other => other?,
            }
        }
        imported.insert(card_id);
        info!("  ✅ 成功: 名片 '{name}'");
        summary.success += 1;
    }
    Ok(())
}

fn card_id(key: &str) -> Option<ObjectId> {
    ObjectId::parse_str(key.strip_prefix("card_")?).ok()
}

fn new_token(context: &Context, card_id: ObjectId, value: Value) -> Option<NewToken> {
    let legacy: LegacyToken = serde_json::from_value(value).ok()?;
    #[allow(clippy::cast_possible_truncation)]
    // A float beyond i64 saturates, and is refused below.
    let saved_at = Timestamp::from_millisecond((legacy.save_time * 1000.0) as i64).ok()?;
    Some(NewToken {
        card_id,
        access_token: AccessToken::new(&legacy.access_token)?,
        user: legacy.uname,
        picture: legacy.pic,
        union_id: legacy.unionid,
        created_at: context.clock.wall(saved_at),
        now: context.clock.wall_now(),
    })
}
