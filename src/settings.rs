//! The environment: secrets, database, API, proxy and certificates.

use std::env::{self, VarError};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts};
use ureq::{Proxy, ProxyProtocol};

use crate::text::os_error;
use crate::uri::{self, Connection};

const DEFAULT_DATABASE: &str = "auto-form-db";
const DEFAULT_API_BASE: &str = "https://api-xcx-qunsou.weiyoubot.cn/xcx";
/// With the longest token the address stays below ureq's 65,534 bytes, above which it panics.
const MAX_API_BASE: usize = 2048;
/// More than any connection string has.
const MAX_SECRET: u64 = 65_536;

/// What the environment says, checked. Nothing has been connected to yet.
pub struct Settings {
    pub connection: Connection,
    pub database: String,
    /// The API's address without a trailing slash.
    pub api_base: String,
    pub proxy: Option<Proxy>,
    pub roots: RootCerts,
}

impl Settings {
    /// Reads and checks the environment; a scheduler does so for each run. An
    /// error is one line that names the variable, never its value.
    pub fn from_env() -> Result<Self, String> {
        let connection = connection()?;
        let (source, database) = match (var("MONGODB_DB_NAME")?, &connection.default_database) {
            (Some(name), _) => ("MONGODB_DB_NAME", name),
            (None, Some(name)) => ("连接字符串", name.clone()),
            (None, None) => ("", DEFAULT_DATABASE.to_owned()),
        };
        let is_bad = |c: char| c.is_control() || "/\\. \"$*<>:|?".contains(c);
        if database.len() > 63 || database.contains(is_bad) {
            return Err(format!("{source} 中的数据库名无效 (no valid database name)"));
        }
        let (api_base, uri) = api_base()?;
        let roots = match var("SSL_CERT_FILE")? {
            None => RootCerts::WebPki,
            Some(file) => {
                let (mut roots, _) = uri::certificates("SSL_CERT_FILE", Path::new(&file))?;
                let built_in = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
                roots.extend(built_in.map(|der| Certificate::from_der(der)));
                RootCerts::from(roots)
            }
        };
        Ok(Self { connection, database, api_base, proxy: proxy(&uri)?, roots })
    }
}

/// A variable; set but empty counts as not set.
fn var(name: &str) -> Result<Option<String>, String> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(format!("{name} 不是有效的 UTF-8 (invalid UTF-8)")),
    }
}

fn connection() -> Result<Connection, String> {
    const BOTH: &str = "MONGODB_URI 与 MONGODB_URI_FILE 只能设置一个 (both are set; keep one)";
    const NONE: &str = "未配置数据库，请设置 MONGODB_URI_FILE 或 MONGODB_URI (no database configured)";
    let folder = var("CREDENTIALS_DIRECTORY")?;
    let (source, text) = match (var("MONGODB_URI")?, var("MONGODB_URI_FILE")?, &folder) {
        (Some(_), Some(_), _) => return Err(BOTH.to_owned()),
        (Some(text), None, _) => ("MONGODB_URI", text),
        (None, Some(file), _) => {
            let is_credential = folder.as_ref().is_some_and(|folder| is_below(&file, folder));
            ("MONGODB_URI_FILE", read_secret("MONGODB_URI_FILE", Path::new(&file), is_credential)?)
        }
        (None, None, Some(folder)) => {
            let source = "$CREDENTIALS_DIRECTORY/mongodb_uri";
            (source, read_secret(source, &Path::new(folder).join("mongodb_uri"), true)?)
        }
        (None, None, None) => return Err(NONE.to_owned()),
    };
    uri::parse(&text).map_err(|mistake| format!("{source}: {mistake}"))
}

/// Whether a file lies in a folder, links resolved.
fn is_below(file: &str, folder: &str) -> bool {
    let real = |path: &str| Path::new(path).canonicalize();
    matches!((real(file), real(folder)), (Ok(file), Ok(folder)) if file.starts_with(&folder))
}

/// Reads a secret; unless systemd keeps it, only its owner may be able to.
fn read_secret(source: &str, path: &Path, is_credential: bool) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("{source} 无法读取: {} (cannot be read)", os_error(&error));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    // A folder is told by the reading.
    if !metadata.is_dir() && metadata.permissions().mode() & 0o077 != 0 && !is_credential {
        return Err(format!("{source} 的文件可被他人读取，请执行 chmod 600 (open to group or others)"));
    }
    let mut text = String::new();
    file.take(MAX_SECRET).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn api_base() -> Result<(String, Uri), String> {
    let text = var("BAOMING_API_BASE")?.unwrap_or_else(|| DEFAULT_API_BASE.to_owned());
    let malformed = || "BAOMING_API_BASE 须是 https://host/path 形式的地址 (no plain address)".to_owned();
    let uri: Uri = text.parse().map_err(|_| malformed())?;
    let (host, authority) = (uri.host().unwrap_or_default(), uri.authority().map_or("", |a| a.as_str()));
    let has_bad_port = uri.port().is_none() && authority != host;
    let has_more = authority.contains('@') || uri.query().is_some() || text.contains('#');
    if host.is_empty() || has_bad_port || has_more || text.len() > MAX_API_BASE {
        return Err(malformed());
    }
    match uri.scheme_str() {
        Some("http") if !is_loopback(host) => {
            Err("BAOMING_API_BASE 会明文发送 Token，请用 https (would send tokens unencrypted)".to_owned())
        }
        Some("http" | "https") => Ok((text.trim_end_matches('/').to_owned(), uri)),
        _ => Err(malformed()),
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The proxy that curl would use. ureq's own choice takes `ALL_PROXY` first and
/// drops what it cannot parse. Plain http goes to loopback only, so `HTTP_PROXY`
/// is never asked.
fn proxy(uri: &Uri) -> Result<Option<Proxy>, String> {
    let host = uri.host().unwrap_or_default();
    let Some((name, text)) = first_var(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])? else {
        return Ok(None);
    };
    let exceptions = first_var(&["no_proxy", "NO_PROXY"])?;
    if is_loopback(host) || exceptions.is_some_and(|(_, list)| is_exempt(host, &list)) {
        return Ok(None);
    }
    match Proxy::new(&text) {
        Ok(proxy) if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) => {
            Ok(Some(proxy))
        }
        _ => Err(format!("{name} 须是 http://host:port 形式的代理，不支持 SOCKS (no HTTP proxy address)")),
    }
}

fn first_var(names: &[&'static str]) -> Result<Option<(&'static str, String)>, String> {
    let mut values = names.iter().map(|name| Ok(var(name)?.map(|value| (*name, value))));
    values.find_map(Result::transpose).transpose()
}

/// Whether a `NO_PROXY` list names a host: `*`, or the host's domain with or
/// without a leading `.` or `*.`, as for curl.
fn is_exempt(host: &str, list: &str) -> bool {
    let host = host.to_ascii_lowercase();
    list.to_ascii_lowercase().split([',', ' ']).any(|entry| {
        let domain = entry.trim().trim_start_matches("*.").trim_start_matches('.');
        entry.trim() == "*" || host == domain || !domain.is_empty() && host.ends_with(&format!(".{domain}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_from_the_proxy_are_those_of_curl() {
        let table = [
            ("*", true),
            ("api.example.com", true),
            ("EXAMPLE.com", true),
            (".example.com", true),
            ("*.example.com", true),
            ("a.b, example.com", true),
            ("ample.com", false),
            ("b.api.example.com", false),
            ("", false),
            (",", false),
        ];
        for (list, expected) in table {
            assert_eq!(is_exempt("api.example.com", list), expected, "{list}");
        }
    }

    #[test]
    fn loopback_hosts() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.com", "10.0.0.1", "[::2]", "127.0.0.1.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
