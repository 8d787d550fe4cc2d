//! The zip file that torch has written since 1.6: a pickle, and each storage as an entry of its own.
//!
//! Entries are stored, not packed, at multiples of 64 bytes, so that they can be used where they lie.
//! Their checksums are not asked: that would read all weights, and torch can be told not to write
//! them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str;

use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord, ZipSliceArchive};

use super::machine;
use super::tensors::{self, Place};
use super::values::Storage;
use super::{Fault, LIMIT};
use crate::json::shortened;

/// What such a file begins with.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// As many storages, and some more.
const ENTRIES: usize = 1 << 16;

/// The tensors of the archive that `file` is.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<&str, Place>, Fault> {
    let archive = ZipArchive::from_slice(file).map_err(|error| broken(&error))?;
    let entries = Entries::of(&archive)?;
    if let Some(order) = entries.get("byteorder")
        && file.get(order.clone()) != Some(b"little")
    {
        return Err(Fault::new("the byte order", "little", "another"));
    }
    if entries.get("constants.pkl").is_some() {
        let found = "a program (TorchScript)";
        return Err(Fault::new("the archive", "a table of tensors", found));
    }
    let Some(pickle) = entries.get("data.pkl") else {
        return Err(Fault::new("the archive", "one of torch.save", "without 'data.pkl'"));
    };
    if pickle.len() > LIMIT {
        let found = format!("{} bytes", pickle.len());
        return Err(Fault::new("data.pkl", format!("at most {LIMIT} bytes long"), found));
    }
    let pickle = machine::run(file.get(pickle.clone()).unwrap_or_default())?;
    tensors::places(&pickle, file.len(), |storage: &Storage<'_>| {
        let what = || format!("the storage {}", shortened(storage.key));
        let Some(range) = entries.get(&format!("data/{}", storage.key)) else {
            return Err(Fault::new(what(), "an entry of the archive", "missing"));
        };
        if storage.bytes() != Some(range.len()) {
            let expected = format!("of {} numbers", storage.numbers);
            return Err(Fault::new(what(), expected, format!("of {} bytes", range.len())));
        }
        Ok(range.clone())
    })
}

/// Where the entries lie.
struct Entries<'a> {
    /// The folder that all are in: torch calls it as the file was called, or "archive".
    root: &'a str,
    ranges: BTreeMap<&'a str, Range<usize>>,
}

impl<'a> Entries<'a> {
    fn of(archive: &'a ZipSliceArchive<&[u8]>) -> Result<Self, Fault> {
        let mut ranges = BTreeMap::new();
        let mut taken = Vec::new();
        let mut root = None;
        let mut records = archive.entries();
        while let Some(record) = records.next_entry().map_err(|error| broken(&error))? {
            if ranges.len() == ENTRIES {
                return Err(Fault::new(
                    "the archive",
                    format!("of at most {ENTRIES} entries"),
                    "larger",
                ));
            }
            let name = str::from_utf8(record.file_path().as_bytes());
            let name =
                name.map_err(|_| Fault::new("an entry's name", "UTF-8", "something else"))?;
            let (whole, data) = range(archive, &record, name)?;
            taken.push((whole, name));
            root = root.or_else(|| name.split_once('/').map(|(root, _)| root));
            if ranges.insert(name, data).is_some() {
                return Err(Fault::new(what(name), "there once", "there twice"));
            }
        }
        // The directory comes last.
        let directory = usize::try_from(archive.directory_offset()).unwrap_or(usize::MAX);
        taken.push((directory..directory, "directory"));
        taken.sort_unstable_by_key(|(range, _)| range.start);
        for pair in taken.windows(2) {
            if let [(first, name), (second, other)] = pair
                && first.end > second.start
            {
                let found = format!("over '{}'", shortened(other));
                return Err(Fault::new(what(name), "beside all others", found));
            }
        }
        Ok(Self { root: root.unwrap_or_default(), ranges })
    }

    fn get(&self, name: &str) -> Option<&Range<usize>> {
        self.ranges.get(format!("{}/{name}", self.root).as_str())
    }
}

/// Where an entry lies with its head, and its data alone, as they are.
fn range(
    archive: &ZipSliceArchive<&[u8]>,
    record: &ZipFileHeaderRecord<'_>,
    name: &str,
) -> Result<(Range<usize>, Range<usize>), Fault> {
    let method = record.compression_method();
    if method != CompressionMethod::STORE {
        let found = format!("packed by method {method}");
        return Err(Fault::new(what(name), "stored as it is", found));
    }
    if record.flags().is_encrypted() {
        return Err(Fault::new(what(name), "stored as it is", "encrypted"));
    }
    let outside = |error| Fault::new(what(name), "within the file", format!("not: {error}"));
    let entry = archive.get_entry(record.wayfinder()).map_err(outside)?;
    let head = entry.local_header();
    if head.file_path().as_bytes() != record.file_path().as_bytes()
        || head.compression_method() != method
        || record.compressed_size_hint() != record.uncompressed_size_hint()
    {
        return Err(Fault::new(what(name), "the same in the directory and in its place", "not"));
    }
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let (start, end) = entry.compressed_data_range();
    let (start, end) = (place(start), place(end));
    Ok((place(record.local_header_offset())..end, start..end))
}

fn broken(error: &rawzip::Error) -> Fault {
    Fault::new("the zip archive", "whole (is the file cut off?)", format!("broken: {error}"))
}

fn what(name: &str) -> String {
    format!("the archive's '{}'", shortened(name))
}
