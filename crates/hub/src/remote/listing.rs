//! Which files a model has, and as far as the hub says, how large they are and what their hashes are.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::store::is_commit;
use crate::digest::Digest;
use crate::stays_inside;

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: Option<u64>,
    pub(super) hash: Option<Digest>,
}

/// The files of a commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Entry>,
}

impl Listing {
    /// From the answer about a model.
    pub(super) fn parse(answer: &Value) -> Option<Self> {
        let commit = answer.get("sha")?.as_str().filter(|sha| is_commit(sha))?.to_owned();
        let files = answer.get("siblings")?.as_array()?.iter();
        let name = |file: &Value| Some(file.get("rfilename")?.as_str()?.to_owned());
        let names = files.filter_map(name).filter(|name| stays_inside(name));
        let files = names.map(|name| Entry { name, size: None, hash: None }).collect();
        Some(Self { commit, files })
    }

    /// With what the answer about the commit's tree adds.
    pub(super) fn add_tree(&mut self, tree: &Value) {
        let known: BTreeMap<&str, &Value> = tree
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|file| Some((file.get("path")?.as_str()?, file)))
            .collect();
        for entry in &mut self.files {
            let Some(file) = known.get(entry.name.as_str()) else { continue };
            let large = file.get("lfs").filter(|lfs| lfs.is_object());
            entry.size = large.unwrap_or(file).get("size").and_then(Value::as_u64);
            let hash = large.unwrap_or(file).get("oid").and_then(Value::as_str);
            entry.hash = hash.and_then(Digest::parse);
        }
    }
}

/// What stands for itself in the path of an address.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A file's name as the path of an address.
pub(super) fn encoded(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}
