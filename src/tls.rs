//! The one TLS client configuration: the system's roots, so that company authorities work, and `ca_file` besides.

use rustls_platform_verifier::Verifier;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, pem};
use tokio_rustls::rustls::{self, ClientConfig};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The extra roots could not be read.
    #[error("{path}: cannot be read as PEM certificates")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The file holds no certificate.
    #[error("{path}: holds no certificate: it must contain -----BEGIN CERTIFICATE-----")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The roots were refused.
    #[error("the certificate store was refused")]
    Roots(#[source] rustls::Error),
}

/// Makes aws-lc-rs the process's cryptography, before anything uses TLS.
pub fn install_provider() {
    // It fails only where one is installed already, which is as good.
    drop(aws_lc_rs::default_provider().install_default());
}

/// The certificates of a PEM file.
///
/// # Errors
/// A file that cannot be read, that is not PEM, or that holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if certificates.is_empty() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The client configuration: TLS 1.2 and 1.3, certificates checked against the system's roots and `extra_roots`.
///
/// # Errors
/// Extra roots that cannot be read, or that the verifier refuses.
pub fn client(extra_roots: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = extra_roots.map(certificates).transpose()?.unwrap_or_default();
    let verifier = Verifier::new_with_extra_roots(roots, provider.clone()).map_err(Error::Roots)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Roots)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}
