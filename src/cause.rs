//! Why the first connection failed, in words to search for, and what to do next.
//! The driver hides most causes in the text of one error, as what each server
//! last said; that text is only searched, never shown.

use std::net::ToSocketAddrs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mongodb::error::{Error, ErrorKind};

use crate::text::escape;
use crate::uri::Connection;

/// A fragment of what the driver says, the cause, what to do. The first that
/// fits holds, so what only a living server says comes before what an absent one leaves.
#[rustfmt::skip]
const CAUSES: [(&str, &str, &str); 29] = [
    ("UnknownIssuer", "证书不可信 (UnknownIssuer)", "请用 tlsCAFile 指定签发服务器证书的 CA"),
    ("CaUsedAsEndEntity", "证书不可信 (CaUsedAsEndEntity)", "服务器用 CA 证书作为自己的证书，请另签一张服务器证书"),
    ("not valid for name", "证书不可信 (NotValidForName)", "证书不含此主机名，请改用证书中的域名连接，或重签证书"),
    ("certificate expired", "证书不可信 (Expired)", "服务器证书已过期，请更换；若未过期，请检查本机时钟"),
    ("certificate not valid yet", "证书不可信 (NotValidYet)", "服务器证书尚未生效，请检查本机时钟"),
    ("invalid peer certificate", "证书不可信", "请检查服务器证书和 tlsCAFile"),
    ("fatal alert: CertificateRequired", "服务器要求客户端证书", "请设置 tlsCertificateKeyFile"),
    ("close_notify", "TLS 连接被服务器断开", "若服务器要求客户端证书，请设置 tlsCertificateKeyFile"),
    ("fatal alert", "TLS 握手被服务器拒绝", "请检查 tlsCertificateKeyFile 以及服务器支持的 TLS 版本"),
    ("tls handshake eof", "服务器不使用 TLS", "请删除 tls=true，或在服务器上启用 TLS"),
    ("InvalidContentType", "服务器不使用 TLS", "请删除 tls=true，或在服务器上启用 TLS"),
    ("unexpected end of file", "服务器要求 TLS", "请在连接字符串中加上 tls=true，私有 CA 另加 tlsCAFile"),
    ("wire version", "服务器版本过旧", "需要 MongoDB 4.2 或更新的版本"),
    ("Authentication", "认证失败", "请检查用户、密码和 authSource"),
    ("command 13; no user", "无权限 (Unauthorized)", "连接字符串中没有用户和密码，服务器要求登录"),
    ("command 13;", "无权限 (Unauthorized)", "请给该用户此数据库的 readWrite 权限"),
    ("InvalidTlsConfig", "TLS 设置无效", "请检查 tlsCAFile 和 tlsCertificateKeyFile"),
    ("invalid reply", "对方不是 MongoDB 服务器", "请检查主机和端口"),
    ("Temporary failure in name resolution", "域名解析超时", "请检查 DNS 服务器 (/etc/resolv.conf)"),
    ("failed to lookup address", "域名无法解析", "请检查主机名的拼写和 DNS"),
    ("no records found", "域名无法解析", "没有 SRV 记录，请检查 mongodb+srv:// 后的域名"),
    ("DNS", "域名无法解析", "请检查 mongodb+srv:// 后的域名和 DNS"),
    ("replicaSet name", "副本集名称不符", "请更正 replicaSet，单机服务器则删除它"),
    ("(os error 111)", "连接被拒绝", "请检查 mongod 是否运行，地址和端口是否正确"),
    ("(os error 2)", "套接字文件不存在", "请检查 mongod 是否运行，套接字路径是否正确"),
    ("(os error 13)", "无权访问套接字文件", "请检查套接字文件的权限"),
    ("(os error 101)", "网络不可达", "请检查本机网络和路由"),
    ("(os error 113)", "网络不可达", "请检查本机网络和路由"),
    ("(os error 104)", "连接被对方重置", "请检查 mongod 的日志，以及中间的防火墙或代理"),
];

/// What a server that does not answer leaves.
pub const TIMED_OUT: &str = "超时；请检查防火墙、安全组和 IP 白名单";
/// What only a direct connection to a member of a set can lead to.
pub const NOT_PRIMARY: &str = "不是主节点；请删除 directConnection=true 并设置 replicaSet，或直接连接主节点";
/// What a name server that does not answer leaves.
pub const SLOW_NAME: &str = "域名解析超时；请检查 DNS 服务器 (/etc/resolv.conf)";

/// What waiting does not change, once all servers say so. A connection that just
/// ends is not of these: it may be a lack of TLS, or a relay whose server is not up yet.
const FINAL: [&str; 6] = [
    "(os error 111)",
    "invalid peer certificate",
    "Name or service not known",
    "InvalidContentType",
    "fatal alert",
    "does not match actual name \u{22}", // its quote: a name, not <none>, as a member has that is starting
];

/// Cause and next step, `CAUSE；HINT`.
pub fn describe(error: &Error, connection: &Connection) -> String {
    let has_user = connection.uri.expose().contains('@');
    let cause = match &*error.kind {
        ErrorKind::ServerSelection { message, .. } => of_topology(message, connection),
        ErrorKind::Authentication { .. } => of_text("Authentication"),
        ErrorKind::InvalidTlsConfig { .. } => of_text("InvalidTlsConfig"),
        ErrorKind::Command(error) => match error.code {
            18 | 8000 => of_text("Authentication"),
            code if has_user => of_text(&format!("command {code};")),
            code => of_text(&format!("command {code}; no user")),
        },
        kind => of_text(&kind.to_string()),
    };
    cause.unwrap_or_else(|| {
        let kind = format!("{:?}", error.kind);
        let name = kind.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        format!("未识别 ({name})；请查看 mongod 的日志")
    })
}

/// Whether waiting for a server is in vain: nothing listens on any of the hosts, for instance.
pub fn is_final(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::ServerSelection { message, .. } if is_settled(message))
}

/// Also when no server is left, as all had another set's name or none: the driver asks
/// nobody any more then. One that is electing or starting stays in its list.
fn is_settled(message: &str) -> bool {
    servers(message).all(|(_, said)| FINAL.iter().any(|text| said.contains(text)))
}

fn of_text(text: &str) -> Option<String> {
    if let Some(silence) = [SLOW_NAME, TIMED_OUT].into_iter().find(|silence| text.contains(silence)) {
        return Some(silence.to_owned());
    }
    let (_, cause, hint) = CAUSES.iter().find(|(fragment, ..)| text.contains(fragment))?;
    Some(format!("{cause}；{hint}"))
}

fn servers(message: &str) -> impl Iterator<Item = (&str, &str)> {
    message.split("{ Address: ").skip(1).filter_map(|server| server.split_once(", Type: "))
}

/// The cause as the state of a replica set, else as what the servers said.
fn of_topology(message: &str, connection: &Connection) -> Option<String> {
    let set = connection.replica_set.as_deref().map(|set| format!(" {}", escape(set))).unwrap_or_default();
    if servers(message).next().is_none() {
        if set.is_empty() || message.contains("wire version") {
            return of_text(message);
        }
        return Some(format!("副本集名称不符，要求的是{set}；请更正 replicaSet，单机服务器则删除它"));
    }
    let bare = |address: &str| address.trim_end_matches(":27017").to_ascii_lowercase();
    let is_listed = |address: &str| {
        address.starts_with('/')
            || connection.uri.expose().starts_with("mongodb+srv")
            || connection.hosts.split(',').any(|host| bare(host) == bare(address))
    };
    let is_lost = |address: &str, said: &str| said.starts_with("Unknown") && !is_listed(address);
    if let Some((member, said)) = servers(message).find(|(address, said)| is_lost(address, said)) {
        let why = of_text(&seen(member, said)).unwrap_or_else(|| "未识别".to_owned());
        return Some(format!(
            "副本集成员 {} 无法连接 ({})；该地址由副本集公布，请使它可达，或只连一台并加 directConnection=true",
            escape(member),
            why.split('；').next().unwrap_or_default(),
        ));
    }
    let any_is = |kind: &str| servers(message).any(|(_, said)| said.starts_with(kind));
    if any_is("RsGhost") {
        return Some(
            "副本集尚未初始化；请在服务器上执行 rs.initiate()，或检查该成员是否已被移出副本集".to_owned(),
        );
    }
    if any_is("Rs") {
        return Some(format!("副本集{set} 没有主节点；请用 rs.status() 检查各成员"));
    }
    let mut all = String::new();
    for (address, said) in servers(message) {
        all += &seen(address, said);
        if all.ends_with(SLOW_NAME) {
            break; // one look-up that hangs is enough to wait for
        }
    }
    of_text(&all)
}

/// The text to look up what a server said; one that said nothing was waited for, or its name was.
fn seen(address: &str, said: &str) -> String {
    if said.contains("Error: ") && !said.contains("timed out") {
        return said.to_owned();
    }
    let (sender, receiver) = mpsc::channel();
    let address = address.to_owned();
    thread::spawn(move || sender.send(address.to_socket_addrs().is_ok()));
    let is_slow = receiver.recv_timeout(Duration::from_secs(1)).is_err();
    if is_slow { SLOW_NAME } else { TIMED_OUT }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_change_ends_the_waiting() {
        const REFUSED: &str = "Unknown, Error: Kind: I/O error: Connection refused (os error 111)";
        let other_name = |name: &str| {
            format!(
                "Unknown, Error: Connection string replicaSet name \"a\" does not match actual name {name}"
            )
        };
        let table: [(&[&str], bool); 9] = [
            (&[], true),
            (&[REFUSED], true),
            (&[REFUSED, "RsSecondary, Replica Set Name: a"], false),
            (&["RsSecondary, Replica Set Name: a"], false),
            (&["RsGhost"], false),
            (&[&other_name("\"b\"")], true),
            (&[&other_name("<none>")], false),
            (&["Unknown, Error: received corrupt message of type InvalidContentType"], true),
            (&["Unknown, Error: Kind: I/O error: tls handshake eof"], false),
        ];
        for (said, expected) in table {
            let servers = said.iter().map(|said| format!("{{ Address: h:27017, Type: {said} }}"));
            let message =
                format!("Topology: {{ Type: Unknown, Servers: [ {} ] }}", servers.collect::<String>());
            assert_eq!(is_settled(&message), expected, "{message}");
        }
    }
}
