//! How the app proves to the token endpoint that it is the app: not at all (a public client), by a secret, or by a
//! certificate (`private_key_jwt`, RFC 7523 and OpenID Connect Core section 9).

use crate::failure::chain;
use crate::section::{Section, check_private};
use crate::{clock, tls};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jiff::civil::Date;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::{CertifiedKey, Signer, SigningKey};
use tokio_rustls::rustls::{self, SignatureScheme};

/// `client_assertion_type` (RFC 7523 section 2.2).
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// An assertion lives for 5 to 10 minutes, as Microsoft advises …
const LIFETIME: Duration = Duration::from_secs(600);
/// … and counts from before it was made, for a clock that is ahead of Microsoft's.
const BACKDATED: Duration = Duration::from_secs(300);

/// How the app proves who it is.
#[derive(Clone, Debug)]
pub enum Credential {
    /// It does not: a public client, which everybody could be. Nothing is ever sent (AADSTS700025).
    Public,
    /// By a client secret.
    Secret(SecretString),
    /// By a signature.
    Certificate(Arc<Certificate>),
}

/// Whether a configuration that was read again names the same. A certificate has one key that fits it.
impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Public, Self::Public) => true,
            (Self::Secret(one), Self::Secret(other)) => one.expose_secret() == other.expose_secret(),
            (Self::Certificate(one), Self::Certificate(other)) => one.thumbprint == other.thumbprint,
            _ => false,
        }
    }
}

impl Credential {
    /// Reads a section's keys; `None`: it has none of them.
    pub(super) fn read(section: &mut Section<'_>) -> Option<Self> {
        let secret = section.secret_file("client_secret_file").map(Self::Secret);
        let (has_certificate, has_key) =
            (section.has("client_certificate_file"), section.has("client_key_file"));
        let certificate = section.path_of("client_certificate_file");
        let key = section.private_path("client_key_file");
        if has_certificate != has_key {
            let (given, missing) = if has_key {
                ("client_key_file", "client_certificate_file")
            } else {
                ("client_certificate_file", "client_key_file")
            };
            section.mistake(
                given,
                format!("needs {missing} as well: the certificate and its key, as PEM files"),
            );
        }
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return secret;
        };
        match Certificate::load(&certificate, &key) {
            Ok(certificate) => Some(Self::Certificate(Arc::new(certificate))),
            Err((key, message)) => {
                section.mistake(key, message);
                secret
            }
        }
    }

    /// The secret that is sent as it is, if there is one.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Self::Secret(secret) => Some(secret.expose_secret()),
            Self::Public | Self::Certificate(_) => None,
        }
    }

    /// What kind of client it makes the app (RFC 6749 section 2.1), for people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Public => "public client: it has no secret and sends none",
            Self::Secret(_) => "confidential client: it sends its secret",
            Self::Certificate(_) => "confidential client: it signs with its certificate",
        }
    }
}

/// A certificate that is registered with the app, and its key.
pub struct Certificate {
    signer: Arc<dyn SigningKey>,
    /// `x5t#S256`: by it Microsoft finds the certificate (RFC 7515 section 4.1.8).
    thumbprint: String,
    /// The day on which it ends, where the file says so in a way that we read.
    pub expires: Option<Date>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("thumbprint", &self.thumbprint).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads certificate and key, both PEM; on error, the configuration's key at fault and what is wrong with it.
    fn load(certificate: &Path, key: &Path) -> Result<Self, (&'static str, String)> {
        let (certificate_key, key_key) = ("client_certificate_file", "client_key_file");
        let certificates = tls::certificates(certificate)
            .map_err(|error| (certificate_key, format!("names {}", chain(&error))))?;
        check_private(key).map_err(|message| (key_key, message))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
            (key_key, format!("names {}, which cannot be read as a PEM private key: {error}", key.display()))
        })?;
        let no_match = |error: rustls::Error| {
            (certificate_key, format!("and client_key_file cannot be used together: {error}"))
        };
        let certified = CertifiedKey::from_der(certificates, private, &aws_lc_rs::default_provider())
            .map_err(no_match)?;
        let leaf = certified.cert.first().map(AsRef::as_ref).unwrap_or_default();
        let found = Self {
            thumbprint: URL_SAFE_NO_PAD.encode(Sha256::digest(leaf)),
            expires: super::not_after::of(leaf),
            signer: certified.key,
        };
        match found.ps256() {
            Some(_) => Ok(found),
            None => Err((key_key, "is not an RSA key, and Microsoft takes no other: make one with `openssl req -x509 \
                -newkey rsa:3072 -nodes -days 730 -subj /CN=outlook-relay -keyout key.pem -out certificate.pem`".to_owned())),
        }
    }

    /// PS256 (RFC 7518 section 3.5) is what TLS calls `rsa_pss_rsae_sha256`: PSS with SHA-256, a salt as long as the hash.
    fn ps256(&self) -> Option<Box<dyn Signer>> {
        self.signer.choose_scheme(&[SignatureScheme::RSA_PSS_SHA256])
    }

    /// A signed assertion that we are `client_id`, for `audience` alone (the token endpoint). `id` is random: no two
    /// assertions are the same.
    ///
    /// # Errors
    /// A key that does not sign.
    pub fn assertion(
        &self,
        client_id: &str,
        audience: &str,
        now: Timestamp,
        id: [u8; 16],
    ) -> Result<SecretString, rustls::Error> {
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint});
        let claims = json!({
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": URL_SAFE_NO_PAD.encode(id),
            "iat": now.as_second(),
            "nbf": now.as_second().saturating_sub_unsigned(BACKDATED.as_secs()),
            "exp": clock::after(now, LIFETIME).as_second(),
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signer = self.ps256().ok_or_else(|| rustls::Error::General("the key is not RSA".to_owned()))?;
        let signature = signer.sign(signed.as_bytes())?;
        Ok(SecretString::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::parse;
    use ::aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
    use std::os::unix::fs::PermissionsExt;

    struct Files {
        folder: tempfile::TempDir,
        rsa: rcgen::KeyPair,
        certificate: rcgen::Certificate,
    }

    fn files() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let elliptic = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.not_after = rcgen::date_time_ymd(2027, 11, 20);
        let certificate = parameters.self_signed(&rsa).unwrap();
        for (name, text, mode) in [
            ("rsa.pem", certificate.pem(), 0o644),
            ("rsa.key", rsa.serialize_pem(), 0o600),
            ("open.key", rsa.serialize_pem(), 0o644),
            ("ec.pem", parameters.self_signed(&elliptic).unwrap().pem(), 0o644),
            ("ec.key", elliptic.serialize_pem(), 0o600),
            ("secret", "the-secret-value".to_owned(), 0o600),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Files { folder, rsa, certificate }
    }

    fn read(files: &Files, text: &str) -> (Option<Credential>, Vec<String>) {
        let parsed = parse(text, files.folder.path(), None, Credential::read);
        (parsed.value, parsed.mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_assertion_is_what_microsoft_checks() {
        let files = files();
        let text = "client_certificate_file = 'rsa.pem'\nclient_key_file = 'rsa.key'\n";
        let (Some(Credential::Certificate(certificate)), mistakes) = read(&files, text) else {
            panic!("none")
        };
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(certificate.expires, Some(jiff::civil::date(2027, 11, 20)));
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let assertion = certificate.assertion("app", "https://login/token", now, [7; 16]).unwrap();
        assert!(!format!("{certificate:?} {assertion:?}").contains(assertion.expose_secret()));

        let (signed, signature) = assertion.expose_secret().rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, files.rsa.public_key_raw());
        key.verify(signed.as_bytes(), &signature).unwrap();
        assert!(key.verify(b"something else", &signature).is_err());
        let parts: Vec<serde_json::Value> = signed
            .split('.')
            .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
            .collect();
        let thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(files.certificate.der()));
        assert_eq!(parts[0], json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}));
        assert_eq!(
            parts[1],
            json!({
                "aud": "https://login/token",
                "iss": "app",
                "sub": "app",
                "jti": "BwcHBwcHBwcHBwcHBwcHBw",
                "iat": 1_800_000_000,
                "nbf": 1_799_999_700,
                "exp": 1_800_000_600,
            })
        );
    }

    #[test]
    fn what_is_configured_is_told_apart() {
        let files = files();
        let both = "client_secret_file = 'secret'\nclient_certificate_file = 'rsa.pem'\nclient_key_file = 'rsa.key'\n";
        assert!(matches!(read(&files, both).0, Some(Credential::Certificate(_))));
        let secret = read(&files, "client_secret_file = 'secret'\n").0.unwrap();
        assert_eq!(secret.secret(), Some("the-secret-value"));
        assert!(secret.describe().starts_with("confidential"));
        assert!(!format!("{secret:?}").contains("the-secret-value"));
        assert!(read(&files, "").0.is_none());
        assert!(Credential::Public.secret().is_none());
        assert!(Credential::Public.describe().starts_with("public"));
    }

    #[test]
    fn mistakes_say_which_key_and_what_to_do() {
        let files = files();
        let cases = [
            ("client_certificate_file = 'rsa.pem'\n", "client_certificate_file: needs client_key_file"),
            ("client_key_file = 'rsa.key'\n", "client_key_file: needs client_certificate_file"),
            ("client_certificate_file = 'no.pem'\nclient_key_file = 'rsa.key'\n", "no.pem"),
            ("client_certificate_file = 'rsa.pem'\nclient_key_file = 'no.key'\n", "no.key"),
            (
                "client_certificate_file = 'rsa.pem'\nclient_key_file = 'secret'\n",
                "cannot be read as a PEM private key",
            ),
            ("client_certificate_file = 'rsa.pem'\nclient_key_file = 'open.key'\n", "chmod 600"),
            ("client_certificate_file = 'rsa.pem'\nclient_key_file = 'ec.key'\n", "cannot be used together"),
            ("client_certificate_file = 'ec.pem'\nclient_key_file = 'ec.key'\n", "is not an RSA key"),
        ];
        for (text, words) in cases {
            let (credential, mistakes) = read(&files, text);
            assert!(credential.is_none() && mistakes.len() == 1, "{text}: {mistakes:?}");
            assert!(mistakes[0].contains(words), "{mistakes:?}");
        }
    }
}
