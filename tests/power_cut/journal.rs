//! What the relay did to its store's folder, and the disks that a power cut could have left of it.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the shim that writes the journal; gives its path.
pub(super) fn shim(folder: &Path) -> PathBuf {
    let shim = folder.join("power_cut.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power_cut/shim.c");
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(cc).args(["-shared", "-fPIC", "-O1", source, "-o"]).arg(&shim).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    shim
}

/// One deed.
#[derive(Debug)]
pub(super) enum Deed {
    Write(u64, Vec<u8>),
    Truncate(u64),
    Sync,
    Remove,
    Rename(String),
    SyncFolder,
}

/// A line of the journal.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: String,
    pub(super) deed: Deed,
    /// The journal's length behind it.
    pub(super) end: u64,
}

/// Reads the shim's records.
pub(super) fn read(journal: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(journal).unwrap();
    let mut rest = bytes.as_slice();
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let what = rest[0];
        let length = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let (name_len, data_len) = (length(1), length(5));
        let offset = u64::from_ne_bytes(rest[9..17].try_into().unwrap());
        let (name, data) = rest[17..17 + name_len + data_len].split_at(name_len);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let deed = match what {
            b'W' => Deed::Write(offset, data.to_vec()),
            b'T' => Deed::Truncate(offset),
            b'S' => Deed::Sync,
            b'U' => Deed::Remove,
            b'R' => Deed::Rename(text(data)),
            b'D' => Deed::SyncFolder,
            _ => panic!("the journal is damaged at {}", bytes.len() - rest.len()),
        };
        let file = text(name);
        rest = &rest[17 + name_len + data_len..];
        entries.push(Entry { file, deed, end: (bytes.len() - rest.len()) as u64 });
    }
    entries
}

/// What a disk does when it is told to sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Honesty {
    Honest,
    /// A sync is done only when the next one comes: the last is always missing.
    OneBehind,
    /// Syncs of the database itself (at checkpoints) are not done; those of its log are.
    LogOnly,
}

/// A change of a file's content that is not synced yet.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap();
                if content.len() < at + bytes.len() {
                    content.resize(at + bytes.len(), 0);
                }
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Truncate(len) => content.resize(usize::try_from(*len).unwrap(), 0),
        }
    }

    /// What the disk happened to have written of it: all, nothing, or some of its sectors.
    fn some(&self, random: &mut StdRng) -> Vec<Change> {
        match (random.random_range(0..4), self) {
            (0 | 1, _) => vec![self.clone()],
            (2, Self::Write(at, bytes)) => {
                let sectors = bytes.chunks(512).enumerate();
                let sectors = sectors.map(|(n, sector)| Self::Write(at + 512 * n as u64, sector.to_vec()));
                sectors.filter(|_| random.random_bool(0.5)).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    synced: Vec<u8>,
    since: Vec<Change>,
}

/// A disk, as it is in the middle of it all.
#[derive(Debug)]
pub(super) struct Disk {
    honesty: Honesty,
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    /// The names as the folder was last synced.
    synced_names: BTreeMap<String, usize>,
    /// A sync that is still to be done: the file, and how many of its changes.
    behind: Option<(usize, usize)>,
}

impl Disk {
    /// With everything that is in this folder, as if it had been there for long.
    pub(super) fn new(folder: &Path, honesty: Honesty) -> Self {
        let mut files = Vec::new();
        let mut names = BTreeMap::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap();
            names.insert(file.file_name().into_string().unwrap(), files.len());
            files.push(File { synced: std::fs::read(file.path()).unwrap(), since: Vec::new() });
        }
        Self { honesty, files, synced_names: names.clone(), names, behind: None }
    }

    /// The next thing happens to it.
    pub(super) fn happen(&mut self, entry: &Entry) {
        match &entry.deed {
            Deed::Write(at, bytes) => self.change(&entry.file, Change::Write(*at, bytes.clone())),
            Deed::Truncate(len) => self.change(&entry.file, Change::Truncate(*len)),
            Deed::Sync => self.sync(&entry.file),
            Deed::Remove => drop(self.names.remove(&entry.file)),
            Deed::Rename(to) => {
                let file = self.names.remove(&entry.file).unwrap();
                self.names.insert(to.clone(), file);
            }
            Deed::SyncFolder => self.synced_names.clone_from(&self.names),
        }
    }

    fn file(&mut self, name: &str) -> usize {
        let new = self.files.len();
        let file = *self.names.entry(name.to_owned()).or_insert(new);
        if file == new {
            self.files.push(File::default());
        }
        file
    }

    fn change(&mut self, name: &str, change: Change) {
        let file = self.file(name);
        self.files[file].since.push(change);
    }

    fn sync(&mut self, name: &str) {
        let file = self.file(name);
        let changes = self.files[file].since.len();
        let now = match self.honesty {
            Honesty::Honest => Some((file, changes)),
            Honesty::OneBehind => self.behind.replace((file, changes)),
            Honesty::LogOnly => (!name.ends_with(".db")).then_some((file, changes)),
        };
        if let Some((file, changes)) = now {
            let File { synced, since } = &mut self.files[file];
            since.drain(..changes).for_each(|change| change.apply(synced));
            if let Some((_, left)) = self.behind.as_mut().filter(|(behind, _)| *behind == file) {
                *left -= changes;
            }
        }
    }

    /// The power fails: what is in the folder then. Of what was not synced nothing is there, or with a seed, whatever the
    /// disk happened to have written, in whatever order.
    pub(super) fn cut(&self, folder: &Path, seed: Option<u64>) {
        let mut random = seed.map(StdRng::seed_from_u64);
        let mut names = self.synced_names.clone();
        if let Some(random) = &mut random {
            for name in self.names.keys().chain(self.synced_names.keys()) {
                if random.random_bool(0.5) {
                    names.remove(name);
                    names.extend(self.names.get(name).map(|&file| (name.clone(), file)));
                }
            }
        }
        std::fs::create_dir_all(folder).unwrap();
        for (name, file) in names {
            let File { synced, since } = &self.files[file];
            let mut content = synced.clone();
            for change in since {
                let happened = random.as_mut().map(|random| change.some(random));
                happened.into_iter().flatten().for_each(|change| change.apply(&mut content));
            }
            let path = folder.join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}
