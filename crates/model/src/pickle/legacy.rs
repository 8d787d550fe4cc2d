//! What torch wrote before 1.6: pickles behind each other, then each storage's length and numbers.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::machine;
use super::tensors::{self, Place};
use super::values::{Object, Storage, Unpickled, Value};
use super::{Fault, LIMIT};
use crate::json::shortened;

/// The first pickle: a number that nothing else begins with.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// The tensors of such a file.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<&str, Place>, Fault> {
    let mut at = 0;
    let mut next = || {
        let rest = file.get(at..).unwrap_or_default();
        let pickle = machine::run(rest.get(..rest.len().min(LIMIT)).unwrap_or_default())?;
        at += pickle.length;
        Ok::<_, Fault>(pickle)
    };
    let first = next().ok().filter(|magic| magic.value == Value::Long(&MAGIC));
    if first.is_none() {
        let tar = file.get(257..262) == Some(b"ustar");
        let found = if tar { "a tar archive, of torch before 0.1.10" } else { "something else" };
        return Err(Fault::new("the file", "one of torch.save", found));
    }
    let version = next()?;
    if version.value != Value::Integer(VERSION) {
        let found = version.words(version.value);
        return Err(Fault::new("the file's version", VERSION.to_string(), found));
    }
    check_system(&next()?)?;
    let pickle = next()?;
    let keys = next()?;
    let storages = storages(file, at, &pickle, &keys)?;
    tensors::places(&pickle, file.len(), |storage: &Storage<'_>| {
        let range = storages.get(storage.key).filter(|range| storage.bytes() == Some(range.len()));
        range.cloned().ok_or_else(|| {
            let what = format!("the storage {}", shortened(storage.key));
            Fault::new(what, format!("there, with {} numbers", storage.numbers), "not")
        })
    })
}

/// Refuses files of machines with another order of bytes.
fn check_system(system: &Unpickled<'_>) -> Result<(), Fault> {
    let Some(Object::Table(facts)) = system.object(system.value) else {
        return Err(Fault::new("the system's facts", "a table", system.words(system.value)));
    };
    if facts.contains(&(Value::Text("little_endian"), Value::Bool(false))) {
        return Err(Fault::new("the byte order", "little", "another"));
    }
    Ok(())
}

/// Where the storages lie, whose `keys` are in the order of their lying behind `at`.
fn storages<'p>(
    file: &[u8],
    mut at: usize,
    pickle: &Unpickled<'p>,
    keys: &Unpickled<'p>,
) -> Result<HashMap<&'p str, Range<usize>>, Fault> {
    let of_objects = pickle.objects.iter().filter_map(|object| match object {
        Object::Storage(storage) => Some((storage.key, storage)),
        _ => None,
    });
    let known: HashMap<&str, &Storage<'_>> = of_objects.collect();
    let Some(Object::List(keys_in_order)) = keys.object(keys.value) else {
        return Err(Fault::new("the storages' keys", "a list", keys.words(keys.value)));
    };
    let mut ranges = HashMap::new();
    for &key in keys_in_order {
        let storage = if let Value::Text(key) = key { known.get(key) } else { None };
        let Some(storage) = storage else {
            let found = keys.words(key);
            return Err(Fault::new("a storage's key", "one that the pickle names", found));
        };
        let what = || format!("the storage {}", shortened(storage.key));
        let stated = file.get(at..).and_then(|rest| rest.first_chunk()).copied();
        let stated = stated.map(u64::from_le_bytes);
        if stated != u64::try_from(storage.numbers).ok() {
            let found = stated.map_or("the file's end".to_owned(), |stated| stated.to_string());
            return Err(Fault::new(what(), format!("of {} numbers", storage.numbers), found));
        }
        let start = at + size_of::<u64>();
        let end = storage.bytes().and_then(|bytes| start.checked_add(bytes));
        let Some(end) = end.filter(|end| *end <= file.len()) else {
            let expected = "within the file (is it cut off?)";
            return Err(Fault::new(what(), expected, format!("of {} numbers", storage.numbers)));
        };
        if ranges.insert(storage.key, start..end).is_some() {
            return Err(Fault::new(what(), "there once", "there twice"));
        }
        at = end;
    }
    Ok(ranges)
}
