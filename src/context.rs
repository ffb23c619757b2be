//! What every verb starts with: the checked input, the database connection, and
//! the texts that more than one of them prints.

use log::{error, info, warn};

use crate::args::Args;
use crate::clock::Clock;
use crate::db_error::DbError;
use crate::output::{clean, presentable};
use crate::settings::Settings;
use crate::store::{Store, Token};

/// The lines that structure the log.
pub const DOUBLE_LINE: &str = "============================================================";
/// Everything a run works with.
pub struct Context {
    /// The command line.
    pub args: Args,
    /// The environment.
    pub settings: Settings,
    /// The wall clock.
    pub clock: Clock,
}

impl Context {
    /// Connects to the database, or says why not.
    pub fn connect(&self) -> Option<Store> {
        info!("🔧 正在连接数据库...");
        let settings = &self.settings;
        match Store::connect(&settings.mongo_uri, &settings.database) {
            Ok(store) => {
                let name = clean(&settings.database);
                info!("✅ MongoDB 连接成功！数据库: {name}");
                info!("✅ 数据库连接成功");
                Some(store)
            }
            Err(error) => {
                let hint = match error {
                    DbError::Lost(_) => "请检查 mongod 是否运行、连接字符串中的地址是否正确",
                    _ => "请检查连接字符串中的用户、密码、authSource、TLS 设置以及读权限",
                };
                error!("❌ 数据库 {} 连接失败: {error}；{hint}", clean(&settings.mongo_host));
                None
            }
        }
    }
}

/// The name of a token's card, safe to show.
pub fn card_name(token: &Token) -> String {
    presentable(token.card_name.as_deref().unwrap_or("已删除的名片"), token.access_token.as_ref())
}

/// The name of a token's user, safe to show.
pub fn user_name(token: &Token) -> String {
    presentable(token.user.as_deref().unwrap_or("未知"), token.access_token.as_ref())
}

/// When a token was last used, for people.
pub fn last_used(token: &Token) -> String {
    token.last_used().map_or_else(|| "从未".to_owned(), |at| at.to_string())
}

/// Says that the delete limit held a step back.
pub fn warn_held_back(count: usize, limit: usize) {
    warn!(
        "  🛑 {count} 个 Token 应删除，超过删除上限 {limit} 个，全部保留；\
         确认无误后用 --max-delete {count} 重新运行"
    );
}

/// What to do when the recycle bin refuses.
pub fn bin_hint(error: &DbError) -> &'static str {
    match error {
        DbError::Refused(_) => "；请检查该账户对 baoming_tokens 和 baoming_tokens_deleted 的权限",
        _ => "",
    }
}
