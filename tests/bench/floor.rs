//! The floor: the least possible sequential loop with the program's own crates. The API's GET, with
//! the program's time limits, and the guarded update for each token, both as the program sends
//! them, so that API and database have the same work; nothing else: no verdict, no log, no card, no
//! limit on what the database takes, no retry, no signal.

use mongodb::bson::{DateTime, RawDocumentBuf, doc};
use mongodb::sync::Client;
use std::env;
use std::error::Error;
use std::time::Duration;
use ureq::Agent;

const USER_AGENT: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
     (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36";

/// Finds database and API as the program does.
pub fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::with_uri_str(env::var("MONGODB_URI")?)?;
    let tokens =
        client.database(&env::var("MONGODB_DB_NAME")?).collection::<RawDocumentBuf>("baoming_tokens");
    let url = env::var("BAOMING_API_BASE")? + "/enroll/v3/detail";
    let limit = Some(Duration::from_secs(10));
    let config = Agent::config_builder().user_agent(USER_AGENT).timeout_connect(limit);
    let config = config.timeout_send_request(limit).timeout_recv_response(limit).timeout_recv_body(limit);
    let agent: Agent = config.build().into();
    let mut cursor = tokens.find(doc! {}).projection(doc! { "access_token": 1 }).run()?;
    while cursor.advance()? {
        let token = cursor.current();
        let (id, access_token) = (token.get_object_id("_id")?, token.get_str("access_token")?);
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
        let change = doc! { "$max": { "last_used": now }, "$set": { "updated_at": now } };
        tokens.update_one(doc! { "_id": id, "access_token": access_token }, change).run()?;
    }
    Ok(())
}
