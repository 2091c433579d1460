//! Where keys lie: one file, and beside it, while the key is rotated, `.new` and `.old`.
//!
//! Everything that is written is on disk when the call returns: the file is synced, then its folder. The file itself is
//! only ever replaced in one step (rename), and only once the key in it is kept as `.old`.

use super::{Error, Key, KeyId};
use crate::section::{check_private, read_secret};
use secrecy::{ExposeSecret, SecretBox};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The keys of one store; clones of the [`Arc`] around it share them.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    /// Whether the relay makes the file itself; else the configuration names it.
    own: bool,
    /// Those that were found so far: more than one only after a rotation.
    known: Mutex<Vec<Arc<Key>>>,
}

impl Keyring {
    /// The keyring whose file is `path`; reads nothing. Where `own`, the file is made when it is first needed.
    pub fn new(path: PathBuf, own: bool) -> Self {
        Self { path, own, known: Mutex::default() }
    }

    /// The key's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the files that are there.
    ///
    /// # Errors
    /// A key file that cannot be used: unreadable, readable by everyone, or without a key.
    pub fn look(&self) -> Result<(), Error> {
        // In this order: what is renamed in the meantime is not missed. A torn `.new` or `.old` counts as none.
        let new = read(&self.new_path()).ok().flatten();
        let key = read(&self.path)?;
        let old = read(&self.old_path()).ok().flatten();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for key in [new, key, old].into_iter().flatten() {
            if known.iter().all(|known| known.id() != key.id()) {
                known.push(Arc::new(key));
            }
        }
        Ok(())
    }

    /// The key with this id: another process may just have rotated it, so the files are looked at again.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Other`], and files that cannot be used.
    pub fn key(&self, id: KeyId) -> Result<Arc<Key>, Error> {
        if let Some(key) = self.known(id) {
            return Ok(key);
        }
        self.look()?;
        if let Some(key) = self.known(id) {
            return Ok(key);
        }
        let path = self.path.clone();
        Err(match self.on_file()? {
            Some(found) => Error::Other { path, found, id },
            None => Error::Missing { path, id },
        })
    }

    fn known(&self, id: KeyId) -> Option<Arc<Key>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|key| key.id() == id).cloned()
    }

    /// The key that the file itself holds now.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn on_file(&self) -> Result<Option<KeyId>, Error> {
        Ok(read(&self.path)?.map(|key| key.id()))
    }

    /// Whether a rotation left something beside the file.
    pub fn has_leftovers(&self) -> bool {
        self.new_path().exists() || self.old_path().exists()
    }

    /// The key of the file, which is made from `random` where there is none. Only for a store that holds nothing sealed.
    ///
    /// # Errors
    /// A file that cannot be used or made; none, where the configuration names it.
    pub fn first(&self, random: SecretBox<[u8; 32]>) -> Result<Arc<Key>, Error> {
        if let Some(id) = self.on_file()? {
            return self.key(id);
        }
        if !self.own {
            let words =
                "which is not there: put it back from a backup; where nothing was stored yet, make one with";
            let shown = self.path.display();
            return Err(Error::File(format!("names {shown}, {words} `openssl rand -base64 32`")));
        }
        let key = Key::new(random);
        self.write_new(&key)?;
        self.put_in_place(key.id())?;
        self.key(key.id())
    }

    /// Writes a key beside the file. One that a rotation left there, and that nothing was sealed with, is replaced.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_new(&self, key: &Key) -> Result<(), Error> {
        let path = self.new_path();
        remove(&path)?;
        let failed = |step| move |source| Error::Write { path: path.clone(), step, source };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.new_path());
        let mut file = file.map_err(failed.clone()("create"))?;
        let text = key.to_text();
        file.write_all(text.expose_secret().as_bytes()).map_err(failed.clone()("write"))?;
        file.write_all(b"\n").map_err(failed.clone()("write"))?;
        self.give_away(&file).map_err(failed.clone()("owner"))?;
        file.sync_all().map_err(failed("sync"))?;
        self.sync_folder()
    }

    /// The command line runs as root, the daemon does not: a key belongs to whom the one before it belongs to, and
    /// else to whom the folder belongs to.
    fn give_away(&self, file: &File) -> std::io::Result<()> {
        let mine = file.metadata()?;
        let before = std::fs::metadata(&self.path);
        let like = before.as_ref().ok().cloned().map_or_else(|| std::fs::metadata(self.folder()), Ok)?;
        if mine.uid() == 0 && (like.uid() != 0 || like.gid() != mine.gid()) {
            std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid()))?;
        }
        if let Ok(before) = before {
            file.set_permissions(std::fs::Permissions::from_mode(before.mode() & 0o660))?;
        }
        Ok(())
    }

    /// Keeps the file's key as `.old` besides.
    ///
    /// # Errors
    /// The disk's, and another key that lies there.
    pub fn keep_old(&self) -> Result<(), Error> {
        let path = self.old_path();
        let Some(current) = self.on_file()? else {
            return Ok(());
        };
        match read(&path)? {
            Some(old) if old.id() == current => return self.sync_folder(),
            Some(_) => {
                let words = "is another key that the store still needs: move it away only if you know better";
                return Err(Error::File(format!(
                    "names {}, but {} {words}",
                    self.path.display(),
                    path.display()
                )));
            }
            None => {}
        }
        std::fs::hard_link(&self.path, &path).map_err(|source| Error::Write {
            path,
            step: "keep the old key",
            source,
        })?;
        self.sync_folder()
    }

    /// Sees to it that the file holds this key, if it lies beside it.
    ///
    /// # Errors
    /// The disk's.
    pub fn put_in_place(&self, id: KeyId) -> Result<(), Error> {
        let current = self.on_file()?;
        if current == Some(id) {
            return Ok(());
        }
        let holds = |path: &Path| read(path).is_ok_and(|key| key.is_some_and(|key| key.id() == id));
        let from = if holds(&self.new_path()) {
            self.keep_old()?;
            self.new_path()
        } else if current.is_none() && holds(&self.old_path()) {
            self.old_path()
        } else {
            return Ok(());
        };
        std::fs::rename(&from, &self.path).map_err(|source| Error::Write {
            path: from,
            step: "put in place",
            source,
        })?;
        self.sync_folder()
    }

    /// Removes what a rotation left beside the file, except keys that are still needed.
    ///
    /// # Errors
    /// The disk's.
    pub fn tidy(&self, is_needed: impl Fn(KeyId) -> bool) -> Result<(), Error> {
        let current = self.on_file()?;
        for path in [self.new_path(), self.old_path()] {
            let is_waste = match read(&path) {
                Ok(Some(key)) => Some(key.id()) == current || !is_needed(key.id()),
                // Cut short while it was written: nothing was sealed with it.
                Err(_) => path == self.new_path(),
                Ok(None) => false,
            };
            if is_waste {
                remove(&path)?;
                self.sync_folder()?;
            }
        }
        Ok(())
    }

    fn new_path(&self) -> PathBuf {
        beside(&self.path, ".new")
    }

    fn old_path(&self) -> PathBuf {
        beside(&self.path, ".old")
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn sync_folder(&self) -> Result<(), Error> {
        let folder = self.folder();
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| Error::Write {
            path: folder.to_owned(),
            step: "sync the folder",
            source,
        })
    }
}

/// What is wrong with a key file, if anything is: for the configuration's check.
///
/// # Errors
/// The words, which follow the name of the key.
pub fn check_key_file(path: &Path) -> Result<(), String> {
    parse(path).map(drop)
}

/// The key in a file; `None` where there is no file.
fn read(path: &Path) -> Result<Option<Key>, Error> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        _ => parse(path).map(Some).map_err(Error::File),
    }
}

fn parse(path: &Path) -> Result<Key, String> {
    let no_key = || {
        format!(
            "names {}, which holds no key: put it back from a backup; where there is none, make a new one with `openssl \
             rand -base64 32`, and if tokens were stored, stop the daemon, run `outlook-relay store rotate-key --lost` and \
             connect each mailbox anew",
            path.display()
        )
    };
    check_private(path)?;
    if std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0) {
        return Err(no_key());
    }
    let text = read_secret(path)?;
    Key::from_text(text.expose_secret()).ok_or_else(no_key)
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_owned(), step: "remove", source: error })
        }
        _ => Ok(()),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
