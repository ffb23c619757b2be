//! The floor: the least possible sequential loop with the program's own crates. One GET and one
//! update for each token, nothing else: no log, no verdict, no guard, no limit.

use mongodb::bson::{DateTime, Document, RawDocumentBuf, doc};
use mongodb::sync::Client;
use std::env;
use std::error::Error;
use ureq::Agent;

/// Finds database and API as the program does.
pub fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::with_uri_str(env::var("MONGODB_URI")?)?;
    let tokens =
        client.database(&env::var("MONGODB_DB_NAME")?).collection::<RawDocumentBuf>("baoming_tokens");
    let url = env::var("BAOMING_API_BASE")? + "/enroll/v3/detail";
    let agent = Agent::new_with_defaults();
    let mut cursor = tokens.find(doc! {}).projection(doc! { "access_token": 1 }).run()?;
    while cursor.advance()? {
        let token = cursor.current();
        let call = agent.get(&url).query("access_token", token.get_str("access_token")?);
        // To its end, or the connection would not be used again.
        call.call()?.body_mut().read_to_vec()?;
        let now = DateTime::now();
        let change: Document = doc! { "$set": { "last_used": now, "updated_at": now } };
        tokens.update_one(doc! { "_id": token.get_object_id("_id")? }, change).run()?;
    }
    Ok(())
}
