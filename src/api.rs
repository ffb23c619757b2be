//! The enroll API over HTTP: one token in, verdict out, with retries.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use log::debug;
use ureq::tls::TlsConfig;
use ureq::{Agent, Error};

use crate::args::Args;
use crate::reads::Token;
use crate::settings::Settings;
use crate::stop;
use crate::text::{AccessToken, escape, os_error, presentable};
use crate::verdict::{Silence, TOO_LARGE, Verdict, info_id, judge};

const USER_AGENT: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
     (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36";
const REFERER: &str = "https://p.baominggongju.com/";
const MAX_BODY_BYTES: u64 = 1024 * 1024;
const MAX_RETRY_AFTER_SECS: u64 = 60;

pub struct Api {
    /// One connection for the whole run.
    shared: Agent,
    /// A new connection for each call, so that a reply that belongs to another request cannot be taken.
    fresh: Agent,
    url: String,
    eid: String,
    retries: u32,
    /// The proxy, if any, as a fault's reason names it.
    through: String,
}

impl Api {
    pub fn new(settings: &Settings, args: &Args) -> Self {
        let limit = Some(args.timeout);
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                // Per phase: a limit on the whole call costs a thread per call.
                .timeout_connect(limit)
                .timeout_send_request(limit)
                .timeout_recv_response(limit)
                .timeout_recv_body(limit)
                .user_agent(USER_AGENT)
                .proxy(settings.proxy.clone())
                .tls_config(TlsConfig::builder().root_certs(settings.roots.clone()).build())
                // Whatever the run's pace.
                .max_idle_age(args.delay + Duration::from_secs(60))
        };
        Self {
            shared: config().build().into(),
            fresh: config().max_idle_connections(0).build().into(),
            url: format!("{}/enroll/v3/detail", settings.api_base),
            eid: args.eid.clone(),
            retries: args.retries,
            through: settings.proxy.as_ref().map_or_else(String::new, |proxy| {
                format!(" (经代理 {}:{})", escape(proxy.host()), proxy.port())
            }),
        }
    }

    /// Asks about a token. What may pass is tried again after 1 s, 2 s, … or what `Retry-After` says, until
    /// patience ends. What cannot be sent is no silence.
    pub fn ask(&self, token: &Token, silence: &mut Silence) -> Verdict {
        self.ask_over(&self.shared, token, silence)
    }

    /// The same on a connection of its own.
    pub fn ask_afresh(&self, token: &Token, silence: &mut Silence) -> Verdict {
        self.ask_over(&self.fresh, token, silence)
    }

    fn ask_over(&self, agent: &Agent, token: &Token, silence: &mut Silence) -> Verdict {
        let access_token = match token.sendable() {
            Ok(access_token) => access_token,
            Err(reason) => return Verdict::Unclear(reason.to_owned()),
        };
        let (asked, patience_ends) = (Instant::now(), silence.patience_ends());
        let is_over = || stop::requested().is_some() || Instant::now() >= patience_ends;
        let mut tries = 0;
        let verdict = loop {
            tries += 1;
            let (verdict, retry_after) = match self.call(agent, access_token) {
                Ok((status, body, retry_after)) => {
                    let verdict = judge(status, &body, access_token);
                    if verdict == Verdict::Valid {
                        debug!("  📡 [API] 获取报名详情成功{}", shown_id(&body, access_token));
                    }
                    (verdict, retry_after)
                }
                Err(Error::BodyExceedsLimit(_)) => (Verdict::no_answer(TOO_LARGE, false), None),
                Err(error) => (Verdict::no_answer(describe(&error) + &self.through, true), None),
            };
            let Verdict::NoAnswer { reason, is_passing: true } = &verdict else { break verdict };
            if tries > u64::from(self.retries) || is_over() {
                break verdict;
            }
            let secs = retry_after.unwrap_or(tries).min(MAX_RETRY_AFTER_SECS);
            debug!("  📡 [API] {reason}，{secs} 秒后重试");
            stop::sleep_until(Instant::now() + Duration::from_secs(secs));
            if is_over() {
                break verdict;
            }
        };
        silence.note(&verdict, asked);
        verdict
    }

    /// One call: status, body and the seconds that `Retry-After` asks for.
    fn call(&self, agent: &Agent, token: &AccessToken) -> Result<(u16, Vec<u8>, Option<u64>), Error> {
        debug!("  📡 [API] GET {}", self.url);
        let mut response = agent
            .get(&self.url)
            .query("eid", &self.eid)
            .query("access_token", token.expose())
            .query("referer", "")
            .query("spider", "h5")
            .header("Referer", REFERER)
            .call()?;
        let status = response.status().as_u16();
        debug!("  📡 [API] 响应状态码: {status}");
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // Always to the end: a connection whose body was not read is not used again.
        let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec()?;
        Ok((status, body, retry_after))
    }
}

/// The id of the enrolment, unless it repeats the token.
fn shown_id(body: &[u8], token: &AccessToken) -> String {
    info_id(body)
        .filter(|id| !token.is_echoed_in(id))
        .map_or_else(String::new, |id| format!(", info_id={id}"))
}

/// A fault in words of our own: some of ureq's texts repeat the whole URL.
fn describe(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "API 请求超时".to_owned(),
        Error::HostNotFound => "无法解析 API 域名".to_owned(),
        Error::ConnectProxyFailed(_) => "无法连接 API 的代理服务器".to_owned(),
        Error::Tls(_) | Error::Rustls(_) => "与 API 的 TLS 连接失败".to_owned(),
        Error::Protocol(_) | Error::Http(_) | Error::LargeResponseHeader(..) => {
            "API 的响应不是有效的 HTTP".to_owned()
        }
        Error::Io(error) => match error.kind() {
            // Only rustls' errors come so, also those of its handshake; with its name for the fault.
            ErrorKind::InvalidData => {
                format!("与 API 的 TLS 连接失败: {}", presentable(&error.to_string(), None))
            }
            ErrorKind::UnexpectedEof => "API 中途断开连接".to_owned(),
            _ if error.raw_os_error().is_some() => format!("无法连接 API: {}", os_error(error)),
            _ => "无法连接 API".to_owned(),
        },
        _ => "无法连接 API".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// The fault when whoever listens there sends this.
    fn fault(scheme: &str, sent: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("{scheme}://{}/", listener.local_addr().expect("an address"));
        thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let _ = client.read(&mut [0; 4096]);
            client.write_all(sent.as_bytes())
        });
        let reply = ureq::agent().get(&url).call().and_then(|mut reply| reply.body_mut().read_to_vec());
        describe(&reply.expect_err(sent))
    }

    #[test]
    fn only_a_fault_of_tls_is_called_one() {
        let is_http = "HTTP/1.1 400 Bad Request\r\n\r\n";
        let bad_chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        let cut_short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nzz";
        let table = [
            ("https", is_http, "与 API 的 TLS 连接失败: received corrupt message of type Inva…"),
            ("https", "", "API 中途断开连接"),
            ("http", "junk\r\n\r\n", "API 的响应不是有效的 HTTP"),
            ("http", bad_chunk, "API 的响应不是有效的 HTTP"),
            ("http", cut_short, "API 中途断开连接"),
        ];
        for (scheme, sent, expected) in table {
            assert_eq!(fault(scheme, sent), expected, "{scheme} {sent}");
        }
    }
}
