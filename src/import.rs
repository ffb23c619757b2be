//! `--import-json`: loads the desktop application's legacy `baoming_tokens.json`,
//! `{"card_<24 hex>": {"access_token", "uname", "pic", "unionid", "_save_time"}}`.

use std::path::Path;
use std::{fs, result};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use log::{error, info, warn};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{self, RawDocumentBuf, rawdoc};
use serde_json::{Map, Value};

use crate::clock::{Clock, WallTime};
use crate::db_error::{DbError, Result};
use crate::stop;
use crate::store::Store;
use crate::summary::Summary;
use crate::text::{AccessToken, escape, os_error, presentable};
use crate::writes::Written;

/// Above this a `_save_time` counts milliseconds, below it seconds.
const MAX_SECONDS: f64 = 1e11;

/// By their keys, `card_` and an id.
pub type Entries = Map<String, Value>;

/// Reads a file to its end, before the database is asked anything. `None`: nothing of it can be
/// imported, and it was said why.
pub fn read(file: &Path) -> Option<Entries> {
    let entries = fs::read(file)
        .map_err(|error| format!("无法读取文件，{}", os_error(&error)))
        .and_then(|bytes| entries(&bytes));
    entries.inspect_err(|reason| error!("❌ 无法导入 {}: {reason}；未写入任何数据", shown(file))).ok()
}

/// The entries of a file; an error says what is wrong without a piece of it.
fn entries(bytes: &[u8]) -> result::Result<Entries, String> {
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let entries: Entries = serde_json::from_slice(text)
        .map_err(|error| format!("不是有效的 JSON 对象，第 {} 行第 {} 列", error.line(), error.column()))?;
    if !entries.keys().any(|key| card_id(key).is_some()) {
        return Err("没有一个键是 card_ 加名片 ID 的形式".to_owned());
    }
    Ok(entries)
}

fn shown(file: &Path) -> String {
    escape(&file.to_string_lossy())
}

/// Imports what was read, one entry after the other.
pub fn run(store: &Store, file: &Path, entries: Entries) -> Summary {
    info!("📥 导入 {}...", shown(file));
    let verb = if store.dry_run { "试运行: 将导入" } else { "成功" };
    let mut summary = Summary::of("导入");
    summary.counts.total = entries.len();
    for (number, (key, value)) in (1..).zip(entries) {
        if stop::requested().is_some() {
            break;
        }
        let at = format!("[{number}/{}]", summary.counts.total);
        match import(store, &key, &value) {
            Ok(Fate::Added(name)) => {
                info!("  ✅ {at} {verb}: 名片 '{name}'");
                summary.counts.success += 1;
            }
            Ok(Fate::Skipped(why)) => {
                warn!("  ⏭️ {at} 跳过: {why}");
                summary.counts.skipped += 1;
            }
            Ok(Fate::Failed(whose, why)) => {
                warn!("  ❌ {at} 失败: 名片 {whose}，{why}");
                summary.fail(&why);
            }
            Err(error) => {
                // Written, but maybe not for good.
                summary.counts.success += usize::from(matches!(error, DbError::Unconfirmed(_)));
                error!("❌ 导入未完成: {error}；可以重新运行，已导入的会跳过");
                summary.lose_database(stop::requested());
                break;
            }
        }
    }
    summary.close_after(stop::requested());
    summary.lines().iter().for_each(|line| info!("{line}"));
    summary
}

/// What became of an entry; the texts are safe to show.
enum Fate {
    Added(String),
    Skipped(String),
    Failed(String, String),
}

fn import(store: &Store, key: &str, value: &Value) -> Result<Fate> {
    let Some(card_id) = card_id(key) else {
        return Ok(Fate::Skipped(format!("无法识别的键 '{}'", presentable(key, None))));
    };
    let Some(access_token) = access_token(value) else {
        return Ok(Fate::Failed(card_id.to_string(), "数据不完整: 缺少 access_token".to_owned()));
    };
    let names = store.card_names(&[card_id])?;
    let Some(name) = names.get(&card_id).map(|name| presentable(name, Some(&access_token))) else {
        return Ok(Fate::Skipped(format!("名片 {card_id} 不存在")));
    };
    if store.card_has_token(card_id)? {
        return Ok(Fate::Skipped(format!("名片 '{name}' 已有 Token")));
    }
    let id = ObjectId::new();
    let token = document(&store.clock, id, card_id, &access_token, value);
    match store.add(&token, id, Some(card_id)) {
        Ok(Written::Done | Written::Would) => Ok(Fate::Added(name)),
        Ok(Written::Changed) => Ok(Fate::Skipped(format!("名片 '{name}' 已有 Token"))),
        Err(error @ DbError::Other(_)) => Ok(Fate::Failed(format!("'{name}'"), error.to_string())),
        Err(error) => Err(error),
    }
}

fn card_id(key: &str) -> Option<ObjectId> {
    ObjectId::parse_str(key.strip_prefix("card_")?).ok()
}

fn access_token(value: &Value) -> Option<AccessToken> {
    AccessToken::new(value["access_token"].as_str()?)
}

/// A document for the token that stands in the file; used just now, so that no cleanup takes it.
fn document(
    clock: &Clock,
    id: ObjectId,
    card_id: ObjectId,
    access_token: &AccessToken,
    value: &Value,
) -> RawDocumentBuf {
    let text = |name: &str| value[name].as_str().unwrap_or_default();
    let now = clock.wall_now();
    let created_at = saved_at(clock, &value["_save_time"]).unwrap_or(now);
    let date = |at: WallTime| bson::DateTime::from_millis(at.0);
    rawdoc! {
        "_id": id,
        "card": card_id,
        "access_token": access_token.expose(),
        "uname": text("uname"),
        "pic": text("pic"),
        "unionid": text("unionid"),
        "created_at": date(created_at),
        "updated_at": date(now),
        "last_used": date(now),
    }
}

/// A `_save_time`: Unix seconds or milliseconds as number or text, or the wall
/// clock in ISO's form, which is taken as it stands.
fn saved_at(clock: &Clock, value: &Value) -> Option<WallTime> {
    let text = value.as_str().unwrap_or_default().trim();
    let Some(number) = value.as_f64().or_else(|| text.parse().ok().filter(|n: &f64| n.is_finite())) else {
        let civil: DateTime = text.trim_end_matches('Z').parse().ok()?;
        return Some(WallTime(TimeZone::UTC.to_timestamp(civil).ok()?.as_millisecond()));
    };
    let millis = if number.abs() > MAX_SECONDS { number } else { number * 1000.0 };
    #[allow(clippy::cast_possible_truncation)]
    // A float beyond i64 saturates, and is no timestamp.
    Some(clock.wall(Timestamp::from_millisecond(millis as i64).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_save_time_may_be() {
        let clock = Clock::start(TimeZone::get("Asia/Shanghai").expect("a bundled zone"));
        let at = Some("2025-02-10 14:20:38");
        let table = [
            ("1739168438", at),
            ("1739168438.123", at),
            ("1739168438123", at),
            ("\"1739168438\"", at),
            ("\" 1739168438.5 \"", at),
            ("\"2025-02-10T14:20:38\"", at),
            ("\"2025-02-10 14:20:38.999\"", at),
            ("\"2025-02-10T14:20:38Z\"", at),
            ("\"2025-02-10\"", Some("2025-02-10 00:00:00")),
            ("0", Some("1970-01-01 08:00:00")),
            ("null", None),
            ("\"\"", None),
            ("\"gestern\"", None),
            ("\"nan\"", None),
            ("1e300", None),
            ("[]", None),
            ("true", None),
        ];
        for (json, expected) in table {
            let value: Value = serde_json::from_str(json).expect(json);
            assert_eq!(saved_at(&clock, &value).map(|at| at.to_string()).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn only_a_token_is_needed() {
        let table = [
            (r#"{"access_token": "a"}"#, true),
            (
                r#"{"access_token": "a", "uname": null, "pic": null, "unionid": null, "_save_time": null}"#,
                true,
            ),
            (r#"{"access_token": " "}"#, false),
            (r#"{"access_token": null}"#, false),
            (r#"{"access_token": 1}"#, false),
            (r"{}", false),
            (r"[]", false),
            (r#""a""#, false),
            ("null", false),
        ];
        for (json, expected) in table {
            let value: Value = serde_json::from_str(json).expect(json);
            assert_eq!(access_token(&value).is_some(), expected, "{json}");
        }
    }

    #[test]
    fn keys_of_the_known_form() {
        assert!(card_id("card_698dae7058e10bc3f764fdbf").is_some());
        for key in [
            "",
            "card_",
            "698dae7058e10bc3f764fdbf",
            "card_698dae7058e10bc3f764fdb",
            "CARD_698dae7058e10bc3f764fdbf",
        ] {
            assert!(card_id(key).is_none(), "{key}");
        }
    }
}
