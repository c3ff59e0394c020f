//! Fetching the files of a data set that are not there yet.
//!
//! A file is received into `<file>.gz.part`, verified there, and renamed into place: what has its final name
//! is whole and the published one. A download that was cut goes on where it stopped (HTTP Range). A lock file
//! keeps a second process from fetching at the same time: it waits, and then finds the files.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::{Response, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use crate::catalogue::{Part, Published};
use crate::idx::{self, MOST_BYTES};
use crate::{DataError, DataSetName, Progress};

/// The environment variable with base addresses of mirrors of one's own, separated by commas, that are tried
/// first. Each has a folder per data set: `<base>/mnist/train-images-idx3-ubyte.gz`.
pub const MIRRORS_VARIABLE: &str = "FLATLAND_MIRRORS";

/// How often a download that is cut, but moves on, is taken up again at the same mirror.
const ATTEMPTS: usize = 5;

/// The addresses of the data set's folder: those of `FLATLAND_MIRRORS`, then the published ones.
pub(crate) fn mirrors(published: &Published) -> Vec<String> {
    list_mirrors(published, &env::var(MIRRORS_VARIABLE).unwrap_or_default())
}

fn list_mirrors(published: &Published, own: &str) -> Vec<String> {
    let own = own.split(',').map(str::trim).filter(|base| !base.is_empty());
    own.map(|base| format!("{}/{}/", base.trim_end_matches('/'), published.name))
        .chain(published.mirrors.iter().map(ToString::to_string))
        .collect()
}

/// The names under which a file is accepted, the published one first: `.gz` or not, `-idx3` or `.idx3`.
fn accepted_names(file: &str) -> [String; 4] {
    let dotted = file.replacen("-idx", ".idx", 1);
    [format!("{file}.gz"), format!("{dotted}.gz"), file.to_owned(), dotted]
}

/// The file in its folder, if it is there under any accepted name.
pub(crate) fn find(folder: &Path, part: &Part) -> Option<PathBuf> {
    accepted_names(part.file).into_iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// Fetches one file into `folder` from the first of `mirrors` that delivers it whole and with the published
/// checksum.
pub(crate) fn fetch(
    name: DataSetName,
    part: &Part,
    folder: &Path,
    mirrors: &[String],
    progress: &dyn Progress,
) -> Result<PathBuf, DataError> {
    fs::create_dir_all(folder).map_err(DataError::io("create", folder))?;
    let _lock = lock(name, folder, progress)?;
    // Another process may have fetched it while this one waited.
    if let Some(path) = find(folder, part) {
        return Ok(path);
    }
    let target = folder.join(format!("{}.gz", part.file));
    let partial = folder.join(format!("{}.gz.part", part.file));
    let mut tried = String::new();
    for mirror in mirrors {
        let url = format!("{mirror}{}.gz", part.file);
        match fetch_from(&url, part, &partial, progress) {
            Ok(()) => {
                fs::rename(&partial, &target).map_err(DataError::io("rename into place", &target))?;
                return Ok(target);
            }
            Err(Failure::Mirror(reason)) => {
                let separator = if tried.is_empty() { "" } else { ", " };
                // Writing to a String cannot fail.
                let _ = write!(tried, "{separator}{url} ({reason})");
            }
            Err(Failure::Disk(source)) => {
                return Err(DataError::Io { action: "write", path: partial, source });
            }
        }
    }
    Err(DataError::Unreachable { name, file: part.file, tried, folder: folder.into() })
}

/// Holds the folder's lock until the returned file is dropped, waiting for another process if need be.
fn lock(name: DataSetName, folder: &Path, progress: &dyn Progress) -> Result<File, DataError> {
    let path = folder.join(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(DataError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.begin(&format!("waiting for another process that downloads {name}"), None);
            let locked = file.lock();
            progress.end();
            locked.map_err(DataError::io("lock", &path))?;
        }
        Err(TryLockError::Error(source)) => {
            return Err(DataError::Io { action: "lock", path, source });
        }
    }
    Ok(file)
}

/// Why a download failed: the mirror's fault (try the next), or this machine's.
enum Failure {
    Mirror(String),
    Disk(io::Error),
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        Self::Mirror(error.to_string())
    }
}

/// Receives and verifies the file of one address; afterwards `partial` is it.
fn fetch_from(url: &str, part: &Part, partial: &Path, progress: &dyn Progress) -> Result<(), Failure> {
    let resumed = receive(url, partial, progress)?;
    let Err(mut error) = check(part, partial) else {
        return Ok(());
    };
    fs::remove_file(partial).map_err(Failure::Disk)?;
    // What another mirror or an older run began may not fit what this one sent: once more, from the start.
    if resumed {
        receive(url, partial, progress)?;
        match check(part, partial) {
            Ok(()) => return Ok(()),
            Err(again) => error = again,
        }
        fs::remove_file(partial).map_err(Failure::Disk)?;
    }
    Err(Failure::Mirror(reason(&error)))
}

/// Whether what was received is the published file.
fn check(part: &Part, partial: &Path) -> Result<(), DataError> {
    let file = idx::read(partial)?;
    if part.file.contains("images") {
        idx::images(partial, &file.bytes)?;
    } else {
        idx::labels(partial, &file.bytes)?;
    }
    idx::verify(partial, part, &file)
}

/// A fault of a received file, without the path and the advice to delete it.
fn reason(error: &DataError) -> String {
    match error {
        DataError::Checksum { expected, found, .. } => {
            format!("wrong checksum: expected sha256 {expected}, found {found}")
        }
        DataError::Gzip { reason, .. } => format!("sent a damaged gzip file: {reason}"),
        _ => "sent something else than the file".into(),
    }
}

/// Receives the address into `partial`, going on from what is there. Gives whether anything was there before
/// the last answer.
fn receive(url: &str, partial: &Path, progress: &dyn Progress) -> Result<bool, Failure> {
    let agent = agent(url);
    let mut failure = String::new();
    for _ in 0..ATTEMPTS {
        let have = fs::metadata(partial).map_or(0, |data| data.len());
        let mut request = agent.get(url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let response = request.call()?;
        let status = response.status().as_u16();
        let from = match status {
            200 => 0,
            206 if range_start(&response) == Some(have) => have,
            // The part is longer than the file, or the server answers another range: start afresh.
            206 | 416 if have > 0 => {
                fs::remove_file(partial).map_err(Failure::Disk)?;
                failure = format!("HTTP {status} for the rest of the file");
                continue;
            }
            _ => return Err(Failure::Mirror(format!("HTTP {status}"))),
        };
        match append(url, response, partial, from, progress)? {
            None => return Ok(from > 0),
            Some(reason) => failure = reason,
        }
        if fs::metadata(partial).map_or(0, |data| data.len()) <= have {
            break;
        }
    }
    Err(Failure::Mirror(failure))
}

/// Where the sent range begins, from `Content-Range: bytes 100-199/200`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let value = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Writes the answer's body to `partial` from byte `from` on. Gives why it ended early, if it did.
fn append(
    url: &str,
    response: Response<Body>,
    partial: &Path,
    from: u64,
    progress: &dyn Progress,
) -> Result<Option<String>, Failure> {
    let announced = response.body().content_length();
    let mut options = OpenOptions::new();
    options.create(true);
    if from > 0 {
        options.append(true)
    } else {
        options.write(true).truncate(true)
    };
    let mut file = options.open(partial).map_err(Failure::Disk)?;

    progress.begin(&format!("downloading {url}"), announced.map(|bytes| from + bytes));
    progress.advance(from);
    let outcome = copy(response.into_body().into_reader().take(MOST_BYTES), &mut file, progress);
    progress.end();
    let (received, ended) = outcome.map_err(Failure::Disk)?;
    file.sync_all().map_err(Failure::Disk)?;

    Ok(match (ended, announced) {
        (Err(error), _) => Some(format!("the connection broke after {} bytes: {error}", from + received)),
        (Ok(()), Some(announced)) if received < announced => {
            Some(format!("the connection broke after {} of {} bytes", from + received, from + announced))
        }
        _ => None,
    })
}

/// Copies until the end or a fault of the source: gives the bytes copied and that fault; a fault of the file
/// is the error.
fn copy(
    mut source: impl Read,
    file: &mut File,
    progress: &dyn Progress,
) -> io::Result<(u64, io::Result<()>)> {
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok((copied, Ok(()))),
            Ok(bytes) => {
                file.write_all(&buffer[..bytes])?;
                copied += bytes as u64;
                progress.advance(bytes as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok((copied, Err(error))),
        }
    }
}

/// An HTTP client with the platform's certificates (on Linux also `SSL_CERT_FILE`), the proxy of the
/// environment, and time limits on silence rather than on the whole: a slow line may take its time.
fn agent(url: &str) -> Agent {
    let host = url.split("://").nth(1).unwrap_or_default();
    let local = host.starts_with("127.0.0.1") || host.starts_with("localhost");
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        // A mirror on this very machine is never behind a proxy.
        .proxy(if local { None } else { Proxy::try_from_env() })
        // The bytes of the file itself are wanted, and ranges are of those.
        .accept_encoding("identity")
        .user_agent(concat!("flatland/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(seconds(15))
        .timeout_connect(seconds(15))
        .timeout_recv_response(seconds(30))
        .timeout_per_read(seconds(30))
        .build()
        .new_agent()
}

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
