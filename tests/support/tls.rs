//! Certificates for the stub and for `mongod`, from a test authority of this process.

use super::file;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Which certificate a server shows; [`ca_file`] holds the authority of all but the self-signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// For `127.0.0.1` and `localhost`.
    Good,
    /// The same, signed by nobody else.
    SelfSigned,
    /// Over since 2020.
    Expired,
    /// For `other.example` only.
    WrongHost,
    /// An authority's, which is no server's.
    CaAsServer,
}

fn authority() -> &'static (CertifiedIssuer<'static, KeyPair>, PathBuf) {
    static AUTHORITY: OnceLock<(CertifiedIssuer<'static, KeyPair>, PathBuf)> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("authority");
        let file = file("ca.pem", issuer.pem(), 0o644);
        (issuer, file)
    })
}

/// PEM file of the test authority, for `SSL_CERT_FILE` and `tlsCAFile`.
pub fn ca_file() -> &'static Path {
    &authority().1
}

fn issue(kind: Certificate) -> (rcgen::Certificate, KeyPair) {
    let names: &[&str] =
        if kind == Certificate::WrongHost { &["other.example"] } else { &["127.0.0.1", "localhost"] };
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, "test server");
    match kind {
        Certificate::Expired => params.not_after = rcgen::date_time_ymd(2020, 1, 1),
        Certificate::CaAsServer => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        _ => {}
    }
    let key = KeyPair::generate().expect("key");
    let certificate = match kind {
        Certificate::SelfSigned => params.self_signed(&key),
        _ => params.signed_by(&key, &authority().0),
    };
    (certificate.expect("certificate"), key)
}

/// A server's certificate and key in one PEM file, as `mongod` takes it.
pub fn pem_file(kind: Certificate) -> PathBuf {
    let (certificate, key) = issue(kind);
    file("server.pem", certificate.pem() + &key.serialize_pem(), 0o600)
}

pub(super) fn server_config(kind: Certificate) -> Arc<ServerConfig> {
    let (certificate, key) = issue(kind);
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], key.into());
    Arc::new(config.expect("TLS configuration"))
}
