//! Certificates for the stub and for `mongod`, from a test authority of this process.

use super::scratch_dir;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::fs;
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

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("authority");
        let file = scratch_dir().join("ca.pem");
        fs::write(&file, issuer.pem()).expect("CA file");
        Authority { issuer, file }
    })
}

/// PEM file of the test authority, for `SSL_CERT_FILE` and `tlsCAFile`.
pub fn ca_file() -> &'static Path {
    &authority().file
}

fn key() -> KeyPair {
    KeyPair::generate().expect("key")
}

fn issue(kind: Certificate) -> (rcgen::Certificate, KeyPair) {
    let names = match kind {
        Certificate::WrongHost => vec!["other.example".to_owned()],
        _ => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
    };
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, "test server");
    if kind == Certificate::Expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    if kind == Certificate::CaAsServer {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let key = key();
    let certificate = match kind {
        Certificate::SelfSigned => params.self_signed(&key),
        _ => params.signed_by(&key, &authority().issuer),
    };
    (certificate.expect("certificate"), key)
}

/// A server's certificate and key in one PEM file, as `mongod` takes it.
pub fn pem_file(kind: Certificate) -> PathBuf {
    let (certificate, key) = issue(kind);
    let file = scratch_dir().join("server.pem");
    fs::write(&file, certificate.pem() + &key.serialize_pem()).expect("certificate file");
    file
}

pub(super) fn server_config(kind: Certificate) -> Arc<ServerConfig> {
    let (certificate, key) = issue(kind);
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .expect("TLS configuration");
    Arc::new(config)
}
