//! The connection string, checked before anything is connected. The driver has
//! the whole string in its errors, or fails only at the first use: here each
//! mistake names its option, and never a value, user or password.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use mongodb::options::{ConnectionString, ServerAddress, Tls};
use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::text::{MongoUri, escape, os_error};

pub struct Connection {
    /// The string for the driver, without the options that are left out.
    pub uri: MongoUri,
    /// The hosts, safe to show.
    pub hosts: String,
    pub default_database: Option<String>,
    pub replica_set: Option<String>,
    /// How long an operation may wait: `timeoutMS`, else `socketTimeoutMS`, from 0.2 to 30 s.
    pub operation_limit: Duration,
    /// Names of the options that change nothing here.
    pub left_out: Vec<String>,
}

/// Less would take a healthy server for a lost one.
const MIN_OPERATION: Duration = Duration::from_millis(200);
const MAX_OPERATION: Duration = Duration::from_secs(30);
/// What the driver's clock can add, and more than anybody waits.
const MAX_NUMBER: u32 = i32::MAX.unsigned_abs();

/// What an option's value must be, and whether the driver sees it.
#[derive(Clone, Copy)]
enum Rule {
    Text,
    OneOf(&'static [&'static str]),
    /// From here to [`MAX_NUMBER`].
    Number(u32),
    /// A number; 0 means this program's own.
    Wait,
    /// A number that bounds an operation here; not for the driver.
    Limit,
    /// Changes nothing for this program, or it has its own: not for the driver.
    LeftOut,
    /// Not supported; what to do instead.
    Refused(&'static str),
}

#[rustfmt::skip]
const OPTIONS: [(Rule, &[&str]); 14] = [
    (Rule::OneOf(&["true", "false"]), &["directConnection", "loadBalanced", "tls", "ssl", "tlsAllowInvalidCertificates", "tlsInsecure",
        "retryReads", "retryWrites"]),
    (Rule::Text, &["appName", "authSource", "replicaSet", "srvServiceName", "tlsCAFile", "tlsCertificateKeyFile"]),
    (Rule::OneOf(&["SCRAM-SHA-1", "SCRAM-SHA-256", "MONGODB-X509", "PLAIN"]), &["authMechanism"]),
    (Rule::OneOf(&["primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest"]), &["readPreference"]),
    (Rule::OneOf(&["auto", "poll", "stream"]), &["serverMonitoringMode"]),
    (Rule::Wait, &["connectTimeoutMS", "serverSelectionTimeoutMS"]),
    (Rule::Limit, &["timeoutMS", "socketTimeoutMS"]),
    (Rule::Number(500), &["heartbeatFrequencyMS"]),
    (Rule::Number(0), &["localThresholdMS", "maxIdleTimeMS", "srvMaxHosts"]),
    // The store's own concerns and preference, one connection; then what only PyMongo or the wire's compression needs.
    (Rule::LeftOut, &["w", "wtimeoutMS", "wtimeout", "journal", "j", "readConcernLevel", "readPreferenceTags",
        "maxStalenessSeconds", "maxPoolSize", "minPoolSize", "maxConnecting", "waitQueueTimeoutMS", "waitQueueMultiple",
        "compressors", "zlibCompressionLevel", "uuidRepresentation", "tz_aware", "connect", "document_class",
        "unicode_decode_error_handler", "datetime_conversion", "fsync", "authMechanismProperties",
        "tlsDisableOCSPEndpointCheck", "tlsDisableCertificateRevocationCheck"]),
    (Rule::Refused("请用含此域名的证书 (use a certificate for this host name)"), &["tlsAllowInvalidHostnames"]),
    (Rule::Refused("请用不加密的私钥文件 (use a key file without password)"), &["tlsCertificateKeyFilePassword"]),
    (Rule::Refused("请删除 (remove it)"), &["tlsCRLFile", "gssapiServiceName", "auto_encryption_opts"]),
    (Rule::Refused("请直接连接，不经代理 (connect without a proxy)"), &["proxyHost", "proxyPort", "proxyUsername", "proxyPassword"]),
];

/// What excludes each other: options, and what else [`Options::facts`] holds.
#[rustfmt::skip]
const CONFLICTS: [(&str, &str); 16] = [
    ("tls=true", "tls=false"), ("tlsInsecure", "tlsAllowInvalidCertificates"),
    ("tlsInsecure", "tls=false"), ("tlsAllowInvalidCertificates", "tls=false"),
    ("tlsCAFile", "tls=false"), ("tlsCertificateKeyFile", "tls=false"),
    ("directConnection=true", SEVERAL), ("directConnection=true", "mongodb+srv://"),
    ("loadBalanced=true", SEVERAL), ("loadBalanced=true", "replicaSet"), ("loadBalanced=true", "directConnection=true"),
    ("srvMaxHosts", "replicaSet"), ("srvMaxHosts", "loadBalanced=true"), ("srvMaxHosts", "mongodb://"),
    ("srvServiceName", "mongodb://"), ("authMechanism=MONGODB-X509", PASSWORD),
];
const SEVERAL: &str = "多个主机 (several hosts)";
const PASSWORD: &str = "密码 (password)";

const ENCODE: &str = "用户名或密码中的特殊字符须转义，如 @ 写作 %40 (percent-encode user and password)";
const HOST: &str =
    "主机须写作 host、host:port 或 [IPv6]:port (malformed host; port 1 to 65535, IPv6 in brackets)";

/// Checks a connection string; blanks, line ends and a BOM around it are skipped.
/// An error is one line that names what is wrong and says what instead.
pub fn parse(text: &str) -> Result<Connection, String> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let front = text.split("://").next().unwrap_or_default();
    first_of(&[
        (text.is_empty(), "没有内容，应为 mongodb://… (empty; a connection string is expected)"),
        (text.starts_with(['"', '\'']), "连接字符串两边不能有引号 (remove the quotes around it)"),
        (text.contains(['\n', '\r']), "连接字符串只能有一行 (more than one line)"),
        (front.contains("=mongodb"), "请删除开头的 MONGODB_URI= (remove the leading MONGODB_URI=)"),
    ])?;
    let Some((scheme @ ("mongodb" | "mongodb+srv"), rest)) = text.split_once("://") else {
        return Err("须以 mongodb:// 或 mongodb+srv:// 开头 (must start with one of these)".to_owned());
    };
    let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, place) = head.rsplit_once('@').map_or((None, head), |(user, place)| (Some(user), place));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    let options = match check_place(scheme, hosts, database).and_then(|()| Options::read(query)) {
        // A `?` in the password made the rest of it the options.
        Err(_) if query.contains('@') => return Err(ENCODE.to_owned()),
        checked => checked?,
    };
    options.check(scheme, hosts, user)?;

    let slash = if place.contains('/') { "" } else { "/" };
    let uri = format!("{scheme}://{head}{slash}?{}", options.kept.join("&"));
    let parsed = ConnectionString::parse(&uri)
        .map_err(|_| "无法解析 (malformed; expected mongodb://user:password@host:port/database?options)")?;
    if let Some(Tls::Enabled(tls)) = &parsed.tls {
        tls.ca_file_path.as_ref().map_or(Ok(()), |file| certificates("tlsCAFile", file).map(drop))?;
        if let Some(file) = &tls.cert_key_file_path {
            let (_, has_key) = certificates("tlsCertificateKeyFile", file)?;
            first_of(&[(!has_key, "tlsCertificateKeyFile 中没有未加密的私钥 (no unencrypted private key)")])?;
        }
    }
    let operation_limit = match options.limit.1 {
        0 => MAX_OPERATION,
        ms => Duration::from_millis(ms.into()).clamp(MIN_OPERATION, MAX_OPERATION),
    };
    Ok(Connection {
        uri: MongoUri::new(uri),
        hosts: escape(hosts),
        default_database: parsed.default_database,
        replica_set: parsed.replica_set,
        operation_limit,
        left_out: options.left_out,
    })
}

fn first_of(mistakes: &[(bool, &str)]) -> Result<(), String> {
    mistakes.iter().find(|(is_made, _)| *is_made).map_or(Ok(()), |(_, text)| Err((*text).to_owned()))
}

fn check_place(scheme: &str, hosts: &str, database: &str) -> Result<(), String> {
    let is_raw_socket = hosts.is_empty() && database.contains(".sock");
    let is_name = !hosts.contains([',', ':', '%']) && hosts.parse::<Ipv4Addr>().is_err();
    // The driver takes any character, and `+` before a port.
    let is_allowed = |c: char| c.is_alphanumeric() || "._-:[]".contains(c);
    let is_text = |host: &str| host.strip_suffix(".sock").is_some() || host.chars().all(is_allowed);
    let is_host = |host: &str| is_text(host) && ServerAddress::parse(host).is_ok();
    first_of(&[
        (is_raw_socket, "套接字路径中的 / 须写作 %2F (percent-encode the path of a socket)"),
        (scheme != "mongodb" && !is_name, "mongodb+srv:// 后须是一个不带端口的域名 (one name, no port)"),
        (!hosts.split(',').all(is_host), HOST),
    ])
}

/// The options as given, each at most once.
#[derive(Default)]
struct Options<'a> {
    /// Names, and `name=value` of those that can only have few values.
    facts: Vec<String>,
    kept: Vec<&'a str>,
    left_out: Vec<String>,
    /// Name and milliseconds.
    limit: (&'static str, u32),
}

impl<'a> Options<'a> {
    fn read(query: &'a str) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_it = |known: &str| known.eq_ignore_ascii_case(name);
            let (rule, name) = all_options().find(|(_, known)| is_it(known)).ok_or_else(|| unknown(name))?;
            if options.facts.iter().any(|fact| fact == name) && name != "readPreferenceTags" {
                return Err(format!("选项 {name} 重复给出 (given more than once)"));
            }
            let number = value.parse().ok().filter(|n| *n <= MAX_NUMBER && !value.starts_with('+'));
            let expected = match rule {
                Rule::Text if value.is_empty() => "… (不能为空, not empty)".to_owned(),
                Rule::OneOf(values) if !values.contains(&value) => values.join(" | "),
                Rule::Number(min) if number.is_none_or(|n| n < min) => format!("{min}..{MAX_NUMBER}"),
                Rule::Wait | Rule::Limit if number.is_none() => format!("0..{MAX_NUMBER}"),
                Rule::Refused(instead) => return Err(format!("不支持选项 {name}，{instead}")),
                _ => String::new(),
            };
            if !expected.is_empty() {
                return Err(format!("选项 {name} 的值须是 {expected} ({name} expects this)"));
            }
            options.facts.push(name.to_owned());
            match (rule, number) {
                // Of the two, `timeoutMS` is the greater name, and wins.
                (Rule::Limit, Some(n)) => options.limit = options.limit.max((name, n)),
                (Rule::LeftOut, _) | (Rule::Wait, Some(0)) => options.left_out.push(name.to_owned()),
                _ => options.kept.push(pair),
            }
            if let Rule::OneOf(_) = rule {
                options.facts.push(format!("{}={value}", name.replace("ssl", "tls")));
            }
        }
        Ok(options)
    }

    fn check(&self, scheme: &str, hosts: &str, user: Option<&str>) -> Result<(), String> {
        let has = |fact: &str| self.facts.iter().any(|known| known == fact);
        let by_certificate = has("authMechanism=MONGODB-X509");
        let (name, password) = user.and_then(|user| user.split_once(':')).unwrap_or((user.unwrap_or(""), ""));
        let is_escape = |part: &str| part.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
        let is_encoded = |text: &str| {
            !text.contains([':', '/', '?', '#', '[', ']', '@']) && text.split('%').skip(1).all(is_escape)
        };
        let needs_user = user.is_none() && has("authMechanism") && !by_certificate;
        first_of(&[
            (!is_encoded(name) || !is_encoded(password), ENCODE),
            (user.is_some() && name.is_empty(), "@ 前缺少用户名 (user name missing before the @)"),
            (needs_user, "authMechanism 需要用户名和密码 (authMechanism needs user:password@)"),
            (user.is_some() && password.is_empty() && !by_certificate, "用户名后缺少密码 (password missing)"),
        ])?;
        let holds = |fact: &str| match fact {
            SEVERAL => hosts.contains(','),
            PASSWORD => !password.is_empty(),
            "mongodb://" | "mongodb+srv://" => fact.strip_suffix("://") == Some(scheme),
            fact => has(fact),
        };
        match CONFLICTS.iter().find(|(a, b)| holds(a) && holds(b)) {
            Some((a, b)) => Err(format!("{a} 与 {b} 不能同时使用 (cannot be combined)")),
            None => Ok(()),
        }
    }
}

fn all_options() -> impl Iterator<Item = (Rule, &'static str)> {
    OPTIONS.iter().flat_map(|(rule, names)| names.iter().map(|name| (*rule, *name)))
}

/// An option that MongoDB does not know, with the one that is probably meant:
/// PyMongo's older names, `snake_case`, and names that lack their end.
fn unknown(name: &str) -> String {
    let is_shown = name.len() <= 30 && name.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    let shown = if is_shown { name } else { "" };
    let bare = shown.to_ascii_lowercase().replace('_', "");
    let bare = match bare.as_str() {
        "rs" | "replset" => "replicaset",
        "authdb" => "authsource",
        "sslcacerts" | "sslcafile" => "tlscafile",
        "sslcertfile" => "tlscertificatekeyfile",
        "sslcertreqs" => "tlsallowinvalidcertificates",
        bare => bare,
    };
    let is_meant = |known: &str| bare.len() > 3 && known.to_ascii_lowercase().starts_with(bare);
    match all_options().find(|(_, known)| is_meant(known)) {
        Some((_, known)) => format!("未知选项 {shown}，应为 {known} (unknown option; {known} is meant)"),
        None => format!("未知选项 {shown}，请更正或删除 (unknown option; correct or remove it)"),
    }
}

/// The certificates of a PEM file, at least one, and whether it holds a private
/// key too. An error is one line that begins with `name`.
pub fn certificates(name: &str, file: &Path) -> Result<(Vec<Certificate<'static>>, bool), String> {
    let pem =
        fs::read(file).map_err(|error| format!("{name} 无法读取: {} (cannot be read)", os_error(&error)))?;
    let (mut certificates, mut has_key) = (Vec::new(), false);
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(PemItem::PrivateKey(_)) => has_key = true,
            Ok(_) => {}
            Err(_) => return Err(format!("{name} 不是有效的 PEM 文件 (no valid PEM file)")),
        }
    }
    if certificates.is_empty() {
        return Err(format!("{name} 中没有证书 (no certificate in the file)"));
    }
    Ok((certificates, has_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_are_taken() {
        const TAGS: &str = "readPreferenceTags readPreferenceTags";
        // What users paste; the hosts that are shown; what is left out; the limit in seconds.
        let table = [
            ("mongodb://h", "h", "", 30),
            ("mongodb://h/", "h", "", 30),
            ("\u{feff} mongodb://h:27017/db \r\n", "h:27017", "", 30),
            ("mongodb://h1,h2:2,h3/?replicaset=rs0", "h1,h2:2,h3", "", 30),
            ("mongodb://[::1]:27017,[fe80::1]/", "[::1]:27017,[fe80::1]", "", 30),
            ("mongodb://%2Ftmp%2F+%2Fmongodb-27017.sock/", "%2Ftmp%2F+%2Fmongodb-27017.sock", "", 30),
            ("mongodb+srv://cluster0.example.net/db?srvMaxHosts=0", "cluster0.example.net", "", 30),
            ("mongodb://h/?compressors=zstd&tls=true&", "h", "compressors", 30),
            ("mongodb://h/?tz_aware=true&connect=false", "h", "tz_aware connect", 30),
            ("mongodb://h/?socketTimeoutMS=20000", "h", "", 20),
            ("mongodb://h/?socketTimeoutMS=20000&timeoutms=5000", "h", "", 5),
            ("mongodb://h/?timeoutMS=0", "h", "", 30),
            ("mongodb://h/?appName=mongodb://x", "h", "", 30),
            ("mongodb://h/?timeoutMS=90000&connectTimeoutMS=0", "h", "connectTimeoutMS", 30),
            ("mongodb://h/?authsource=admin&readPreference=secondaryPreferred", "h", "", 30),
            ("mongodb://h/?w=5&readConcernLevel=majority", "h", "w readConcernLevel", 30),
            ("mongodb://h/?w=0&journal=true&maxPoolSize=0", "h", "w journal maxPoolSize", 30),
            ("mongodb://h/?retryWrites=true&ssl=true&tls=true&appName=my%20app", "h", "", 30),
            ("mongodb://u:a@h/?authMechanism=SCRAM-SHA-256&replicaSet=a", "h", "", 30),
            ("mongodb://u:!$%&'()*+,;<=>^`{|}~\"\\-._ @h/", "h", "", 30),
            ("mongodb://u:%23%25%2C%2F%3A%3C%3F%40%5B%5D%7B@h", "h", "", 30),
            ("mongodb://h/?readPreferenceTags=a:b&readPreferenceTags=", "h", TAGS, 30),
        ];
        for (text, hosts, left_out, seconds) in table {
            // `%` alone is no escape; the rest of ASCII's marks is fine as it is.
            let text = text.replace("$%&", "$&");
            let connection = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(connection.hosts, hosts, "{text}");
            assert_eq!(connection.left_out.join(" "), left_out, "{text}");
            assert_eq!(connection.operation_limit, Duration::from_secs(seconds), "{text}");
            let driver = ConnectionString::parse(connection.uri.expose()).expect(&text);
            assert_eq!(driver.replica_set, connection.replica_set, "{text}");
        }
        let least = parse("mongodb://h/?directConnection=true&timeoutMS=1").expect("taken");
        assert_eq!(least.operation_limit, MIN_OPERATION);
    }

    #[test]
    fn mistakes_are_named_and_nothing_else_is_shown() {
        let table = [
            ("", "mongodb://"),
            ("\"mongodb://h/\"", "引号"),
            ("'mongodb://h/'", "quotes"),
            ("MONGODB_URI=mongodb://h/", "MONGODB_URI="),
            ("export MONGODB_URI=mongodb+srv://h/", "MONGODB_URI="),
            ("mongodb://h/\nmongodb://h2/", "一行"),
            ("http://h/", "mongodb://"),
            ("mongodb:/h", "mongodb://"),
            ("mongodb://", "host"),
            ("mongodb:///db", "host"),
            ("mongodb://h1,,h2/", "host"),
            ("mongodb:///tmp/mongodb-27017.sock", "percent-encode"),
            ("mongodb://h:99999/", "port"),
            ("mongodb://h:/", "port"),
            ("mongodb://h:+1/", "port"),
            ("mongodb://::1/", "brackets"),
            ("mongodb://[::1/", "brackets"),
            ("mongodb://[h]/", "brackets"),
            ("mongodb://[::1]x/", "port"),
            ("mongodb://h h/", "host"),
            ("mongodb://h%41/", "host"),
            ("mongodb://h/a/b", "database"),
            ("mongodb+srv://127.0.0.1/", "mongodb+srv"),
            ("mongodb+srv://a.b.c:27017/", "mongodb+srv"),
            ("mongodb+srv://a.b.c,d.e.f/", "mongodb+srv"),
            ("mongodb+srv://a.b.c/?directConnection=true", "directConnection"),
            ("mongodb://ops:S3@cret@h/", "percent-encode"),
            ("mongodb://ops:S3/cret@h/", "percent-encode"),
            ("mongodb://ops:S3?cret@h/", "percent-encode"),
            ("mongodb://ops:123?S3cret@h/?tls=true", "percent-encode"),
            ("mongodb://ops:123?a=S3cret&b@h/", "percent-encode"),
            ("mongodb://ops:S3#cret@h/", "percent-encode"),
            ("mongodb://ops:S3:cret@h/", "percent-encode"),
            ("mongodb://ops:S3[cret@h/", "percent-encode"),
            ("mongodb://ops:S3cret%zz@h/", "percent-encode"),
            ("mongodb://ops:S3cret%@h/", "percent-encode"),
            ("mongodb://S3cret@h/", "password missing"),
            ("mongodb://S3cret:@h/", "password missing"),
            ("mongodb://:S3cret@h/", "user name missing"),
            ("mongodb://h/?replSet=S3cret", "replicaSet"),
            ("mongodb://h/?replica_set=S3cret", "replicaSet"),
            ("mongodb://h/?rs=S3cret", "replicaSet"),
            ("mongodb://h/?auth_source=S3cret", "authSource"),
            ("mongodb://h/?authDB=S3cret", "authSource"),
            ("mongodb://h/?readConcern=S3cret", "readConcernLevel"),
            ("mongodb://h/?timeout=S3cret", "timeoutMS"),
            ("mongodb://h/?ssl_ca_certs=S3cret", "tlsCAFile"),
            ("mongodb://h/?sslCAFile=S3cret", "tlsCAFile"),
            ("mongodb://h/?S3cret=1", "unknown option"),
            ("mongodb://h/?S3cret", "unknown option"),
            ("mongodb://h/?replicaSet=", "replicaSet"),
            ("mongodb://h/?replicaSet=a&replicaset=b", "replicaSet"),
            ("mongodb://h/?tls", "tls"),
            ("mongodb://h/?tls=yes", "tls"),
            ("mongodb://h/?retryWrites=True", "retryWrites"),
            ("mongodb://h/?tls=true&ssl=false", "tls"),
            ("mongodb://h/?tls=false&tlsCAFile=S3cret", "tlsCAFile"),
            ("mongodb://h/?ssl=false&tlsInsecure=true", "tlsInsecure"),
            ("mongodb://h/?tlsInsecure=true&tlsAllowInvalidCertificates=true", "tlsInsecure"),
            ("mongodb://h/?tlsAllowInvalidHostnames=true", "tlsAllowInvalidHostnames"),
            ("mongodb://h/?tlsCertificateKeyFilePassword=S3cret", "tlsCertificateKeyFilePassword"),
            ("mongodb://h/?tlsCAFile=%2Fno%2Fsuch.pem", "tlsCAFile"),
            ("mongodb://h/?tlsCAFile=Cargo.toml", "tlsCAFile"),
            ("mongodb://h/?tlsCertificateKeyFile=/", "tlsCertificateKeyFile"),
            ("mongodb://h/?proxyHost=S3cret", "proxyHost"),
            ("mongodb://h,i/?directConnection=true", "directConnection"),
            ("mongodb://h,i/?loadBalanced=true", "loadBalanced"),
            ("mongodb://h/?loadBalanced=true&replicaSet=a", "loadBalanced"),
            ("mongodb://h/?loadBalanced=true&directConnection=true", "loadBalanced"),
            ("mongodb://h/?srvMaxHosts=1", "srvMaxHosts"),
            ("mongodb://h/?srvServiceName=a", "srvServiceName"),
            ("mongodb+srv://h/?srvMaxHosts=1&replicaSet=a", "srvMaxHosts"),
            ("mongodb://h/?authMechanism=MONGODB-AWS", "authMechanism"),
            ("mongodb://h/?authMechanism=MONGODB-CR", "authMechanism"),
            ("mongodb://h/?authMechanism=PLAIN", "authMechanism"),
            ("mongodb://u:S3cret@h/?authMechanism=MONGODB-X509", "authMechanism"),
            ("mongodb://h/?readPreference=S3cret", "readPreference"),
            ("mongodb://h/?timeoutMS=-1", "timeoutMS"),
            ("mongodb://h/?connectTimeoutMS=5s", "connectTimeoutMS"),
            ("mongodb://h/?serverSelectionTimeoutMS=99999999999", "serverSelectionTimeoutMS"),
            ("mongodb://h/?heartbeatFrequencyMS=499", "heartbeatFrequencyMS"),
            ("mongodb://h/?maxIdleTimeMS=+5", "maxIdleTimeMS"),
        ];
        for (text, named) in table {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.contains(named), "{text}: {error}");
            assert!(!error.contains("S3") && !error.contains('\n'), "{text}: {error}");
            assert_eq!(error.contains("percent-encode"), named == "percent-encode", "{text}: {error}");
        }
    }
}
