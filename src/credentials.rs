//! Secrets and the systemd unit: which of them it hands to the service, and what to do about those that it does not.
//!
//! The service is a user of its own, and a secret's file is root's alone. So systemd reads it (`LoadCredential=`) and puts a
//! copy into `$CREDENTIALS_DIRECTORY`, for the names that the unit knows (systemd.exec(5)).

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The names in the unit that is shipped (deploy/outlook-relay.service).
const SHIPPED: [&str; 9] = [
    "client-secret",
    "client-key.pem",
    "odoo-password",
    "submission-password",
    "odoo-submission-password",
    "news-submission-password",
    "privkey.pem",
    "admin-password",
    "store-key",
];

/// Where an administrator's own words on the unit lie: `systemctl edit` writes into the second.
const OWN: [&str; 2] =
    ["/etc/systemd/system/outlook-relay.service", "/etc/systemd/system/outlook-relay.service.d"];

/// What to do about a file that the service, which has `credentials` from systemd, may not read; `None`: it may, or it is
/// not there.
pub fn unreadable(name: &Path, path: &Path, folder: &Path, credentials: &Path) -> Option<String> {
    let error =
        std::fs::File::open(path).err().filter(|error| error.kind() == ErrorKind::PermissionDenied)?;
    Some(format!(
        "names {}, which cannot be read: {error}: {}",
        path.display(),
        remedy(name, path, folder, credentials)
    ))
}

fn remedy(name: &Path, path: &Path, folder: &Path, credentials: &Path) -> String {
    // The unit's stand-in for a file that was not there yet when the service started.
    if credentials.join(name).exists() {
        return "systemd hands it over at the start: `systemctl restart outlook-relay`".to_owned();
    }
    format!("{}, then restart", lines(name, path, folder))
}

/// What to say of a file that only root may read, where the unit does not hand it over; `None`: all is well.
pub fn only_root(name: &Path, path: &Path, folder: &Path) -> Option<String> {
    let file = std::fs::metadata(path).ok()?;
    // Beside relay.toml, which the service has to reach itself, only the file's own permissions matter.
    let folders = if name.is_absolute() { path.parent() } else { None };
    let mut folders =
        folders.into_iter().flat_map(Path::ancestors).filter_map(|folder| folder.metadata().ok());
    let is_hidden = is_roots(&file, 0o4) || folders.any(|folder| is_roots(&folder, 0o1));
    if !is_hidden || is_handed_over(name, OWN.iter().flat_map(|place| texts(Path::new(place)))) {
        return None;
    }
    Some(format!(
        "names {}, which only root may read, and the service is a user of its own: {}, then `systemctl restart outlook-relay`",
        path.display(),
        lines(name, path, folder)
    ))
}

/// Whether none but root has this permission (as the last digit of a mode).
fn is_roots(file: &Metadata, right: u32) -> bool {
    let for_group = right << 3;
    file.uid() == 0 && file.mode() & right == 0 && (file.gid() == 0 || file.mode() & for_group == 0)
}

/// Whether the unit, with what an administrator added to it, knows the name.
fn is_handed_over(name: &Path, own: impl Iterator<Item = String>) -> bool {
    let Some(name) = name.to_str() else { return false };
    SHIPPED.contains(&name) || own.flat_map(|text| named(&text)).any(|known| known == name)
}

/// The names that a unit's text gives to credentials.
fn named(text: &str) -> Vec<String> {
    let keys = ["LoadCredential=", "LoadCredentialEncrypted="];
    let values = text.lines().filter_map(|line| keys.iter().find_map(|key| line.trim().strip_prefix(key)));
    values.filter_map(|value| value.split_once(':')).map(|(name, _)| name.to_owned()).collect()
}

/// The text of a file, or of each file in a folder; none, where they cannot be read.
fn texts(place: &Path) -> Vec<String> {
    let files: Vec<PathBuf> = match std::fs::read_dir(place) {
        Ok(files) => files.filter_map(Result::ok).map(|file| file.path()).collect(),
        Err(_) => vec![place.to_owned()],
    };
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect()
}

/// How the unit comes to hand a file over. Every command reads the secrets as well, beside relay.toml in `folder`: so a file
/// from elsewhere needs a name there.
fn lines(name: &Path, path: &Path, folder: &Path) -> String {
    let short = Path::new(name.file_name().unwrap_or(name.as_os_str()));
    let beside = folder.join(short);
    let (is_beside, shown) = (beside == path, short.display());
    let mut steps = Vec::new();
    if !is_beside {
        steps.push(format!("`ln -s {} {}`, write \"{shown}\" here", path.display(), beside.display()));
    }
    if is_beside || !is_handed_over(short, std::iter::empty()) {
        steps.push(format!(
            "`systemctl edit outlook-relay` with the lines [Service], LoadCredential={shown}:{} and SetCredential={shown}:\\n",
            beside.display()
        ));
    }
    steps.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_unit_that_is_shipped() {
        let unit = include_str!("../deploy/outlook-relay.service");
        let mut expected = SHIPPED.map(str::to_owned);
        let mut found = named(unit);
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        for name in SHIPPED {
            assert!(unit.contains(&format!("\nLoadCredential={name}:/etc/outlook-relay/{name}\n")), "{name}");
            assert!(
                unit.contains(&format!("\nSetCredential={name}:\\n\n")),
                "{name}: systemd would not start"
            );
        }
    }

    #[test]
    fn what_the_administrator_added_counts() {
        let own = || ["[Service]\nLoadCredential=key.pem:/x/key.pem\n".to_owned()].into_iter();
        assert!(is_handed_over(Path::new("key.pem"), own()));
        assert!(is_handed_over(Path::new("client-secret"), own()));
        assert!(!is_handed_over(Path::new("other-secret"), own()));
        assert!(
            !is_handed_over(Path::new("/etc/outlook-relay/client-secret"), own()),
            "no credential has a path"
        );
    }

    #[test]
    fn the_remedy_is_the_lines_of_the_unit_or_a_restart() {
        let credentials = tempfile::tempdir().unwrap();
        std::fs::write(credentials.path().join("client-secret"), "\n").unwrap();
        let said = |name: &str| {
            let folder = Path::new("/etc/outlook-relay");
            remedy(Path::new(name), &folder.join(name), folder, credentials.path())
        };
        assert!(
            said("client-secret").contains("systemctl restart") && !said("client-secret").contains("edit")
        );
        let other = said("other");
        let unit = "LoadCredential=other:/etc/outlook-relay/other and SetCredential=other:\\n,";
        assert!(other.contains(unit) && !other.contains("ln -s"), "{other}");
        // A path is never a credential, and every command of root's reads the file under its name beside relay.toml.
        let far = said("/etc/letsencrypt/live/x/privkey.pem");
        let link = "`ln -s /etc/letsencrypt/live/x/privkey.pem /etc/outlook-relay/privkey.pem`, write \"privkey.pem\" here";
        assert!(far.contains(link) && !far.contains("systemctl edit"), "{far}");
        let both = said("/etc/letsencrypt/live/x/other.pem");
        assert!(
            both.contains("ln -s") && both.contains("LoadCredential=other.pem:/etc/outlook-relay/other.pem"),
            "{both}"
        );
    }
}
