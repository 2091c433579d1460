//! Whose the store's files are: the daemon is a user of its own, and who works on them by hand is root.

use super::backup::failed;
use super::file::{beside, folder_of};
use super::{Config, Error, real};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

/// The files of the store that belong to another than their folder does, which is the daemon's. A folder of root's says
/// nothing: systemd gives it away at the start, with all that is in it.
pub(super) fn strangers(config: &Config) -> Vec<PathBuf> {
    found(config).map(|(_, files)| files).unwrap_or_default()
}

/// Gives these back, where root is who asks.
pub(super) fn give_back(config: &Config) -> Result<(), Error> {
    let Some((folder, files)) = found(config) else { return Ok(()) };
    for file in files {
        // Never through a symbolic link: what the daemon's user may have put there is not root's to give away.
        match lchown(&file, Some(folder.uid()), Some(folder.gid())) {
            Err(error) if error.kind() != ErrorKind::PermissionDenied => {
                return Err(failed(&file, "give back to the folder's owner")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn found(config: &Config) -> Option<(Metadata, Vec<PathBuf>)> {
    let store = real(&config.path);
    let folder = std::fs::metadata(folder_of(&store)).ok().filter(|folder| folder.uid() != 0)?;
    let mut files = vec![store.with_extension("lock"), beside(&store, "-wal"), beside(&store, "-shm")];
    if config.key_file.is_none() {
        let key = config.keyring().path().to_owned();
        files.extend(["", ".new", ".old"].map(|ending| beside(&key, ending)));
    }
    files.insert(0, store);
    let is_strange = |path: &Path| {
        std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.uid() != folder.uid())
    };
    files.retain(|path| is_strange(path));
    Some((folder, files))
}
