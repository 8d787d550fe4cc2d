//! The download of one file: on from where it broke off, with a least rate, and checked at the end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ureq::http::HeaderMap;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};

use super::HubError;
use super::answer::{Asked, Setback};
use super::client::{Client, Reply};
use super::listing::Entry;
use super::store::{self, Store};
use crate::digest::{Digest, sha256};
use crate::{FetchError, Stage};
use vecmill_model::disk::NoRoom;

/// Bytes per second that a download must bring, on the average of the time in which it may stand
/// still: slower ones would never end.
const LEAST_RATE: u64 = 1 << 10;
/// A failure after so many bytes is not one more in a row.
const MOVED: u64 = 1 << 20;

/// One commit's files on their way into the hub's cache.
pub(super) struct Transfer<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) store: &'a Store,
    /// What addresses of files begin with.
    pub(super) address: String,
    pub(super) commit: &'a str,
}

/// One file while it comes in.
struct Download<'a> {
    entry: &'a Entry,
    file: File,
    path: PathBuf,
    /// Bytes so far.
    have: u64,
    /// Whether contents with another hash came already.
    differed: bool,
}

impl Transfer<'_> {
    /// Whether the commit's file is there, and is what the hub says it is.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        let file = self.store.snapshot(self.commit).join(&entry.name);
        let Ok(metadata) = file.metadata() else { return false };
        let hash = entry.hash.clone().or_else(|| store::expected(&file));
        metadata.is_file()
            && entry.size.is_none_or(|size| size == metadata.len())
            && hash.is_none_or(|hash| matches!(hash.differs(&file), Ok(None)))
    }

    /// Downloads the file and gives it its names.
    pub(super) fn run(&self, entry: &Entry) -> Result<(), HubError> {
        let local =
            |error| HubError::Local(FetchError::written(self.store.folder(), entry.size)(error));
        let (mut file, path) = self.store.part(entry.hash.as_ref()).map_err(local)?;
        let have = file.seek(SeekFrom::End(0)).map_err(local)?;
        let mut download =
            Download { entry, file, path: path.as_ref().to_owned(), have, differed: false };
        let hash = self.client.patiently(|| self.bring(&mut download))?;
        let kept = self.store.keep(&download.path, &hash, self.commit, &entry.name);
        kept.map_err(local)
    }

    /// Asks for what is missing of a file, and gives the hash of all of it.
    fn bring(&self, download: &mut Download<'_>) -> Result<String, Setback> {
        let name = &download.entry.name;
        let mut promise = Promise::of(download.entry);
        let had = download.have;
        if promise.size != Some(had) || had == 0 {
            let address = format!("{}/{}", self.address, super::listing::encoded(name));
            let reply = self.client.file(name, &address, had)?;
            download.continues(&reply)?;
            promise.add(&reply, download.have);
            if let Some(size) = promise.size {
                let needed = size.saturating_sub(download.have);
                NoRoom::check(&download.path, needed)
                    .map_err(|full| Setback::local(FetchError::NoRoom(full)))?;
            }
            let arrived = self.receive(download, reply, promise.size);
            arrived.map_err(|setback| Setback {
                moved: download.have.saturating_sub(had) >= MOVED,
                ..setback
            })?;
        }
        download.check(&promise)
    }

    /// Writes what arrives to the file's end.
    fn receive(
        &self,
        download: &mut Download<'_>,
        reply: Reply,
        size: Option<u64>,
    ) -> Result<(), Setback> {
        let name = download.entry.name.clone();
        let (host, stall) = (reply.host, self.client.stall());
        let mut body = reply.body.into_reader();
        let mut buffer = vec![0; 1 << 16];
        let (mut since, mut before) = (Instant::now(), download.have);
        let report = |done| {
            (self.client.progress)(Stage::Fetching { file: name.clone(), done, total: size });
        };
        report(download.have);
        loop {
            let read = body
                .read(&mut buffer)
                .map_err(|error| self.client.no_answer(Asked::File(&name), &host, &error.into()))?;
            let Some(arrived) = buffer.get(..read).filter(|arrived| !arrived.is_empty()) else {
                break;
            };
            download.file.write_all(arrived).map_err(|error| {
                Setback::local(FetchError::written(&download.path, size)(error))
            })?;
            download.have += read as u64;
            report(download.have);
            if size.is_some_and(|size| download.have > size) {
                break;
            }
            if since.elapsed() >= stall {
                let least = LEAST_RATE.saturating_mul(stall.as_secs());
                let came = download.have - before;
                if came < least {
                    let seconds = stall.as_secs();
                    let words = format!(
                        "{name}: the download is too slow: {host} sent {came} bytes in {seconds} s"
                    );
                    return Err(Setback::broken(words));
                }
                (since, before) = (Instant::now(), download.have);
            }
        }
        match size {
            Some(size) if download.have < size => Err(Setback::broken(format!(
                "{name}: the connection to {host} ended after {} of {size} bytes",
                download.have
            ))),
            _ => Ok(()),
        }
    }
}

impl Download<'_> {
    /// Whether a reply goes on where the file ends; otherwise the file begins anew.
    fn continues(&mut self, reply: &Reply) -> Result<(), Setback> {
        let range = header(&reply.headers, CONTENT_RANGE.as_str());
        let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-'));
        let start = start.and_then(|(start, _)| start.parse::<u64>().ok());
        if reply.status == 206 && start == Some(self.have) {
            return Ok(());
        }
        let from_the_start = reply.status == 200 || (reply.status == 206 && start == Some(0));
        self.empty()?;
        if from_the_start {
            return Ok(());
        }
        let name = &self.entry.name;
        Err(Setback::broken(format!(
            "{name}: {} sent another part of the file than the one asked for",
            reply.host
        )))
    }

    fn empty(&mut self) -> Result<(), Setback> {
        self.have = 0;
        let emptied = self.file.set_len(0);
        emptied.map_err(|error| Setback::local(FetchError::written(&self.path, None)(error)))
    }

    /// Whether what arrived is what was promised; gives its hash, by which it will be named.
    fn check(&mut self, promise: &Promise) -> Result<String, Setback> {
        let name = self.entry.name.clone();
        let local = |error| Setback::local(FetchError::written(&self.path, None)(error));
        if let Some(size) = promise.size.filter(|size| *size != self.have) {
            let have = self.have;
            self.empty()?;
            return Err(Setback::broken(format!(
                "{name}: {have} or more bytes came, but the hub says that it has {size}"
            )));
        }
        if let Some(expected) = &promise.hash {
            let Some(found) = expected.differs(&self.path).map_err(local)? else {
                return Ok(expected.text().to_owned());
            };
            let again = !std::mem::replace(&mut self.differed, true);
            self.empty()?;
            if again {
                let expected = expected.text();
                return Err(Setback::broken(format!(
                    "{name}: its hash is {found}, but the hub says {expected}"
                )));
            }
            let (path, expected) = (PathBuf::from(name), expected.text().to_owned());
            return Err(Setback::local(FetchError::Hash { path, expected, found }));
        }
        // Servers in between have tags of their own, so one that is no hash of this is no promise.
        let tagged = promise.tag.as_ref().filter(|tag| matches!(tag.differs(&self.path), Ok(None)));
        match tagged {
            Some(tag) => Ok(tag.text().to_owned()),
            None => sha256(Path::new(&self.path)).map_err(local),
        }
    }
}

/// What is known of a file before it is there.
struct Promise {
    size: Option<u64>,
    /// What its hash must be.
    hash: Option<Digest>,
    /// What its hash may be.
    tag: Option<Digest>,
}

impl Promise {
    fn of(entry: &Entry) -> Self {
        Self { size: entry.size, hash: entry.hash.clone(), tag: None }
    }

    /// With what a reply says whose body goes on after `have` bytes.
    fn add(&mut self, reply: &Reply, have: u64) {
        let number = |headers: &HeaderMap, name: &str| header(headers, name)?.parse::<u64>().ok();
        let of_range = || {
            let (_, all) = header(&reply.headers, CONTENT_RANGE.as_str())?.rsplit_once('/')?;
            all.parse().ok()
        };
        let rest = || number(&reply.headers, CONTENT_LENGTH.as_str());
        self.size = self
            .size
            .or_else(|| number(&reply.of_hub, "x-linked-size"))
            .or_else(|| if reply.status == 206 { of_range() } else { None })
            .or_else(|| rest()?.checked_add(have));
        let hash = |name: &str| {
            let text = header(&reply.of_hub, name)?;
            Digest::parse(text.trim_start_matches("W/").trim_matches('"'))
        };
        self.hash = self.hash.take().or_else(|| hash("x-linked-etag"));
        self.tag = hash(ETAG.as_str());
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}
