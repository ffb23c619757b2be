//! The enroll API over HTTP: one token in, status and body out, with retries.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::debug;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

use crate::args::Args;
use crate::clock::retry_after_secs;
use crate::output::clean;
use crate::secret::AccessToken;
use crate::settings::Settings;
use crate::stop;

const USER_AGENT: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
     (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36";
const REFERER: &str = "https://p.baominggongju.com/";
const MAX_BODY_BYTES: u64 = 1024 * 1024;
const MAX_WAIT_SECS: u64 = 60;
/// How long a looked-up address is good for.
const ADDRESS_AGE: Duration = Duration::from_secs(60);

/// What became of one check.
pub enum Answer {
    /// The API answered.
    Reply {
        /// The HTTP status.
        status: u16,
        /// The whole body; empty when it was larger than 1 MiB.
        body: Vec<u8>,
    },
    /// No answer after all tries; the reason is safe to show.
    Unreachable(String),
}

/// One run's connection to the API.
pub struct Api {
    agent: Agent,
    addresses: Addresses,
    url: String,
    eid: String,
    retries: u32,
}

impl Api {
    /// Prepares the connection; nothing is sent yet.
    pub fn new(settings: &Settings, args: &Args) -> Self {
        let tls = TlsConfig::builder().root_certs(settings.roots.clone()).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(args.timeout))
            .user_agent(USER_AGENT)
            .proxy(settings.proxy.clone())
            .tls_config(tls)
            // One connection serves the whole run, whatever its pace.
            .max_idle_age(args.delay + Duration::from_secs(60))
            .build();
        let addresses = Addresses::default();
        Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), addresses.clone()),
            addresses,
            url: format!("{}/enroll/v3/detail", settings.api_base),
            eid: args.eid.clone(),
            retries: args.retries,
        }
    }

    /// Asks the API about a token. Transport faults, 5xx and 429 are tried
    /// again after 1 s, 2 s, … or, when `is_patient`, after what `Retry-After`
    /// says, up to 60 s.
    pub fn check(&self, token: &AccessToken, is_patient: bool) -> Answer {
        let mut tries = 0;
        loop {
            tries += 1;
            let (fault, retry_after) = match self.try_once(token) {
                Ok((status, _, retry_after)) if matches!(status, 429 | 500..=599) => {
                    (format!("HTTP {status}"), retry_after)
                }
                Ok((status, body, _)) => return Answer::Reply { status, body },
                Err(error) => {
                    self.addresses.forget();
                    (describe(&error), None)
                }
            };
            if tries > u64::from(self.retries) {
                return Answer::Unreachable(fault);
            }
            let secs = retry_after.filter(|_| is_patient).unwrap_or(tries).min(MAX_WAIT_SECS);
            debug!("  📡 [API] {fault}，{secs} 秒后重试");
            stop::sleep_until(Instant::now() + Duration::from_secs(secs));
            if stop::requested().is_some() {
                return Answer::Unreachable(fault);
            }
        }
    }

    /// One call: status, body and the seconds that `Retry-After` asks for.
    fn try_once(&self, token: &AccessToken) -> Result<(u16, Vec<u8>, Option<u64>), Error> {
        debug!("  📡 [API] GET {}", self.url);
        let mut response = self
            .agent
            .get(&self.url)
            .query("eid", &self.eid)
            .query("access_token", token.expose())
            .query("referer", "")
            .query("spider", "h5")
            .header("Referer", REFERER)
            .call()?;
        let status = response.status().as_u16();
        debug!("  📡 [API] 响应状态码: {status}");
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after_secs(value, Timestamp::now()));
        // Always to the end: a connection whose body was not read is not used again.
        let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
        match body {
            Ok(body) => Ok((status, body, retry_after)),
            Err(Error::BodyExceedsLimit(_)) => {
                debug!("  📡 [API] 响应超过 1 MiB，已忽略");
                Ok((status, Vec::new(), retry_after))
            }
            Err(error) => Err(error),
        }
    }
}

/// The API's addresses as they were looked up last. ureq asks for them before
/// each call, also when it has a connection already; its own resolver would look
/// them up each time, in a new thread because of the time limit.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<Option<(Instant, Uri, ResolvedSocketAddrs)>>>);

impl Addresses {
    /// After a fault: the API may have moved.
    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, of, addresses)) = &*last
            && at.elapsed() < ADDRESS_AGE
            && (of.scheme(), of.authority()) == (uri.scheme(), uri.authority())
        {
            return Ok(addresses.clone());
        }
        let addresses = DefaultResolver::default().resolve(uri, config, timeout)?;
        *last = Some((Instant::now(), uri.clone(), addresses.clone()));
        Ok(addresses)
    }
}

/// A fault in words of our own: some of ureq's texts repeat the whole URL.
fn describe(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "API 请求超时".to_owned(),
        Error::HostNotFound => "无法解析 API 域名".to_owned(),
        Error::ConnectProxyFailed(_) => "无法连接代理服务器".to_owned(),
        Error::Tls(_) | Error::Rustls(_) => "TLS 错误".to_owned(),
        Error::Protocol(_) | Error::Http(_) | Error::LargeResponseHeader(..) => {
            "API 的响应不是有效的 HTTP".to_owned()
        }
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            format!("TLS 校验失败: {}", clean(&error.to_string()))
        }
        Error::Io(error) => format!("无法连接 API: {}", clean(&error.to_string())),
        _ => "无法连接 API".to_owned(),
    }
}
