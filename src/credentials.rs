//! Secrets that systemd hands over (systemd.exec(5), LoadCredential=): copies, which it makes at the start alone, or from systemd
//! 260 on and with `RefreshOnReload=credentials` at a reload as well.

use std::fs::{Metadata, read_dir};
use std::path::Path;

/// Names the secrets beside the configuration, `file`, that a reload did not take up.
pub fn warn_of_outdated(file: &Path) {
    let (Some(credentials), Some(folder)) = (std::env::var_os("CREDENTIALS_DIRECTORY"), file.parent()) else {
        return;
    };
    for name in outdated(credentials.as_ref(), folder) {
        let advice = "systemd hands a secret of LoadCredential= over at a start: restart the relay for it";
        tracing::warn!(key = format!("LoadCredential={name}"), advice, "not changed by a reload");
    }
}

/// The names of those in `credentials` whose file in `folder` was written after the copy was made. That a file cannot be
/// looked at says nothing.
fn outdated(credentials: &Path, folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for copy in read_dir(credentials).into_iter().flatten().flatten() {
        // What is the unit's stand-in for an absent file is no copy.
        let made = copy.metadata().ok().filter(|copy| copy.len() > 1);
        let written = folder.join(copy.file_name()).metadata();
        let modified = |file: Metadata| file.modified().ok();
        if let (Some(made), Some(written)) = (made.and_then(modified), written.ok().and_then(modified))
            && written > made
        {
            names.push(copy.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_copy_is_outdated_once_its_file_is_written_anew() {
        let (credentials, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |folder: &Path, name: &str, content: &str, age: u64| {
            std::fs::write(folder.join(name), content).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
            File::options().append(true).open(folder.join(name)).unwrap().set_modified(at).unwrap();
        };
        for (name, copy, made, written) in [
            ("changed", "a secret\n", 10, Some(5)),
            ("as-it-was", "a secret\n", 10, Some(15)),
            ("same-moment", "a secret\n", 10, Some(10)),
            ("stand-in", "\n", 10, Some(5)),
            ("elsewhere", "a secret\n", 10, None),
        ] {
            put(credentials.path(), name, copy, made);
            if let Some(written) = written {
                put(folder.path(), name, "another secret\n", written);
            }
        }
        assert_eq!(outdated(credentials.path(), folder.path()), ["changed"]);
        assert_eq!(outdated(Path::new("/nonexistent"), folder.path()), [""; 0]);
    }
}
