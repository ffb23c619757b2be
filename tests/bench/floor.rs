//! The floor: the least possible sequential loop with the program's own crates. The API's GET and
//! the guarded update for each token, both as the program sends them, so that API and database have
//! the same work; nothing else: no verdict, no log, no card, no time limit, no retry, no signal.

use mongodb::bson::{DateTime, RawDocumentBuf, doc};
use mongodb::sync::Client;
use std::env;
use std::error::Error;
use ureq::Agent;

const USER_AGENT: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
     (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36";

/// Finds database and API as the program does.
pub fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::with_uri_str(env::var("MONGODB_URI")?)?;
    let tokens =
        client.database(&env::var("MONGODB_DB_NAME")?).collection::<RawDocumentBuf>("baoming_tokens");
    let url = env::var("BAOMING_API_BASE")? + "/enroll/v3/detail";
    let agent: Agent = Agent::config_builder().user_agent(USER_AGENT).build().into();
    let mut cursor = tokens.find(doc! {}).projection(doc! { "access_token": 1, "last_used": 1 }).run()?;
    while cursor.advance()? {
        let token = cursor.current();
        let (id, access_token) = (token.get_object_id("_id")?, token.get_str("access_token")?);
        let used = token.get_datetime("last_used")?;
        let call = agent
            .get(&url)
            .query("eid", "69844bcf8eaa2449c7a37fae")
            .query("access_token", access_token)
            .query("referer", "")
            .query("spider", "h5")
            .header("Referer", "https://p.baominggongju.com/");
        // To its end, or the connection would not be used again.
        call.call()?.body_mut().read_to_vec()?;
        let now = DateTime::now();
        let guard = doc! { "_id": id, "access_token": access_token, "last_used": { "$eq": used } };
        tokens.update_one(guard, doc! { "$set": { "last_used": now, "updated_at": now } }).run()?;
    }
    Ok(())
}
