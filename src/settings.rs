//! The environment: secrets, database, API, proxy and certificates.

use std::env;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mongodb::options::{Acknowledgment, ConnectionString, HostInfo};
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts};
use ureq::{Proxy, ProxyProtocol};

use crate::secret::MongoUri;

const DEFAULT_DATABASE: &str = "auto-form-db";
const DEFAULT_API_BASE: &str = "https://api-xcx-qunsou.weiyoubot.cn/xcx";

/// What the environment says, checked. Nothing has been connected to yet.
pub struct Settings {
    /// Where the database is.
    pub mongo_uri: MongoUri,
    /// The database's address without user and password, for messages.
    pub mongo_host: String,
    /// The database's name.
    pub database: String,
    /// The API's address without a trailing slash.
    pub api_base: String,
    /// The proxy for the API, if any.
    pub proxy: Option<Proxy>,
    /// The certificates that the API's must be signed by.
    pub roots: RootCerts,
}

impl Settings {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// One line that names the variable; never its value.
    pub fn from_env() -> Result<Self, String> {
        let mongo_uri = mongo_uri()?;
        let parsed = ConnectionString::parse(mongo_uri.expose()).map_err(|_| {
            // The driver's text repeats the URI, password and all.
            "the MongoDB connection string is malformed; expected mongodb://user:password@host:port/database \
             with special characters of user and password percent-encoded"
        })?;
        let mongo_host = match &parsed.host_info {
            HostInfo::DnsRecord(name) => name.clone(),
            HostInfo::HostIdentifiers(hosts) => {
                hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }
            _ => String::new(),
        };
        let write_concern = parsed.write_concern.and_then(|concern| concern.w);
        if write_concern == Some(Acknowledgment::Nodes(0)) {
            return Err("w=0 in the MongoDB connection string hides failed writes; remove it".to_owned());
        }
        let database = match var("MONGODB_DB_NAME")? {
            Some(name) => name,
            None => parsed.default_database.unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
        };
        let is_bad = |c: char| c.is_control() || "/\\. \"$*<>:|?".contains(c);
        if database.is_empty() || database.len() > 63 || database.contains(is_bad) {
            return Err("MONGODB_DB_NAME is no valid database name".to_owned());
        }
        let (api_base, uri) = api_base()?;
        Ok(Self { mongo_uri, mongo_host, database, api_base, proxy: proxy(&uri)?, roots: roots()? })
    }
}

/// A variable; set but empty counts as not set.
fn var(name: &str) -> Result<Option<String>, String> {
    match env::var_os(name) {
        None => Ok(None),
        Some(value) => match value.into_string() {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(_) => Err(format!("{name} is not valid UTF-8")),
        },
    }
}

fn mongo_uri() -> Result<MongoUri, String> {
    let credentials = var("CREDENTIALS_DIRECTORY")?;
    let text = match (var("MONGODB_URI")?, var("MONGODB_URI_FILE")?, credentials.clone()) {
        (Some(_), Some(_), _) => {
            return Err("MONGODB_URI and MONGODB_URI_FILE are both set; keep one".to_owned());
        }
        (Some(uri), None, _) => uri,
        (None, Some(file), dir) => {
            let is_credential = dir.is_some_and(|dir| is_below(&file, &dir));
            read_secret("MONGODB_URI_FILE", Path::new(&file), is_credential)?
        }
        (None, None, Some(dir)) => {
            let file = Path::new(&dir).join("mongodb_uri");
            read_secret("$CREDENTIALS_DIRECTORY/mongodb_uri", &file, true)?
        }
        (None, None, None) => {
            return Err("no database is configured; set MONGODB_URI or MONGODB_URI_FILE".to_owned());
        }
    };
    Ok(MongoUri::new(text.trim().to_owned()))
}

/// Whether a file lies in a folder, links resolved.
fn is_below(file: &str, dir: &str) -> bool {
    match (Path::new(file).canonicalize(), Path::new(dir).canonicalize()) {
        (Ok(file), Ok(dir)) => file.starts_with(dir),
        _ => false,
    }
}

/// Reads a secret; unless systemd keeps it, only its owner may be able to.
fn read_secret(name: &str, path: &Path, is_credential: bool) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("{name} cannot be read: {}", error.kind());
    let mut file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 && !is_credential {
        return Err(format!("{name} is open to group or others; run chmod 600 on the file"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(unreadable)?;
    if text.trim().is_empty() {
        return Err(format!("{name} is empty; put the connection string in it"));
    }
    Ok(text)
}

fn api_base() -> Result<(String, Uri), String> {
    let text = var("BAOMING_API_BASE")?.unwrap_or_else(|| DEFAULT_API_BASE.to_owned());
    let malformed = || "BAOMING_API_BASE is no plain address like https://host/path".to_owned();
    let uri: Uri = text.parse().map_err(|_| malformed())?;
    let host = uri.host().ok_or_else(malformed)?;
    let has_user = uri.authority().is_some_and(|a| a.as_str().contains('@'));
    if has_user || uri.query().is_some() || text.contains('#') {
        return Err(malformed());
    }
    let is_loopback = host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if is_loopback => {}
        Some("http") => {
            return Err("BAOMING_API_BASE would send tokens unencrypted; use https".to_owned());
        }
        _ => return Err(malformed()),
    }
    Ok((text.trim_end_matches('/').to_owned(), uri))
}

/// The proxy that curl would use for `uri`. ureq's own choice ignores the scheme.
fn proxy(uri: &Uri) -> Result<Option<Proxy>, String> {
    let names = if uri.scheme_str() == Some("https") {
        ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    } else {
        ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
    };
    let exceptions = first_var(["NO_PROXY", "no_proxy"])?;
    let (Some((name, text)), host) = (first_var(names)?, uri.host().unwrap_or_default()) else {
        return Ok(None);
    };
    if exceptions.is_some_and(|(_, list)| is_exempt(host, &list)) {
        return Ok(None);
    }
    match Proxy::new(&text) {
        Ok(proxy) if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) => {
            Ok(Some(proxy))
        }
        _ => Err(format!("{name} is no proxy address like http://host:port (SOCKS is not supported)")),
    }
}

fn first_var<const N: usize>(names: [&'static str; N]) -> Result<Option<(&'static str, String)>, String> {
    for name in names {
        if let Some(value) = var(name)? {
            return Ok(Some((name, value)));
        }
    }
    Ok(None)
}

/// Whether a `NO_PROXY` list names a host: `*`, or the host's domain with or
/// without a leading `.` or `*.`, as for curl.
fn is_exempt(host: &str, list: &str) -> bool {
    let host = host.to_ascii_lowercase();
    list.split([',', ' ']).any(|entry| {
        let entry = entry.trim().to_ascii_lowercase();
        let domain = entry.trim_start_matches("*.").trim_start_matches('.');
        entry == "*" || host == domain || !domain.is_empty() && host.ends_with(&format!(".{domain}"))
    })
}

/// The built-in roots, plus those of `SSL_CERT_FILE`.
fn roots() -> Result<RootCerts, String> {
    let Some(path) = var("SSL_CERT_FILE")? else {
        return Ok(RootCerts::WebPki);
    };
    let pem =
        std::fs::read(path).map_err(|error| format!("SSL_CERT_FILE cannot be read: {}", error.kind()))?;
    let mut roots: Vec<Certificate<'static>> =
        webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|der| Certificate::from_der(der)).collect();
    let built_in = roots.len();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => roots.push(certificate),
            Ok(_) => {}
            Err(_) => return Err("SSL_CERT_FILE is no valid PEM file".to_owned()),
        }
    }
    if roots.len() == built_in {
        return Err("SSL_CERT_FILE holds no certificate".to_owned());
    }
    Ok(RootCerts::from(roots))
}
