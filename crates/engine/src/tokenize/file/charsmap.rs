//! The character map of a `Precompiled` normaliser: SentencePiece's rules for characters, as an
//! automaton over their UTF-8 bytes and a string with what they become.
//!
//! The crate trusts it: it takes room for as many units as the first four bytes say, and follows
//! offsets wherever they lead. Here every state that can be reached is visited once, so that no text
//! can lead outside of the map.
//!
//! The layout is `u32` bytes of the automaton, its units as `u32`, the string with an end `\0` after
//! each entry; a unit is Darts-clone's: <https://github.com/s-yata/darts-clone>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Checks the map of a normaliser; gives the most bytes that it makes of one.
pub(super) fn check(normalizer: &Value) -> Result<usize, String> {
    let text = normalizer.get("precompiled_charsmap").and_then(Value::as_str);
    let text = text.ok_or("expected a string in base64")?;
    let bytes = STANDARD.decode(text).map_err(|error| format!("expected base64: {error}"))?;
    let (size, rest) = bytes.split_first_chunk().ok_or("it has fewer than 4 bytes")?;
    let size = u32::from_le_bytes(*size) as usize;
    let cut = "its header says more bytes than there are";
    let (units, replacements) = rest.split_at_checked(size).ok_or(cut)?;
    if units.is_empty() || !units.len().is_multiple_of(4) {
        return Err(format!("expected a multiple of 4 bytes of units, found {size}"));
    }
    let (units, _) = units.as_chunks();
    let units = units.iter().map(|unit| Unit(u32::from_le_bytes(*unit))).collect();
    let replacements = std::str::from_utf8(replacements).map_err(|error| error.to_string())?;
    Map { units, replacements }.walk()
}

#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    fn value(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }

    fn label(self) -> u32 {
        self.0 & (1 << 31 | 0xff)
    }

    fn offset(self) -> usize {
        ((self.0 as usize) >> 10) << ((self.0 & 1 << 9) >> 6)
    }
}

struct Map<'a> {
    units: Vec<Unit>,
    replacements: &'a str,
}

impl Map<'_> {
    fn unit(&self, place: usize) -> Result<Unit, String> {
        let found = self.units.get(place).copied();
        found.ok_or_else(|| format!("it leads to unit {place}, but has {}", self.units.len()))
    }

    /// Visits every state in the order of its distance from the start.
    fn walk(&self) -> Result<usize, String> {
        let start = self.unit(0)?.offset();
        let mut visited = vec![false; self.units.len()];
        let (mut states, mut bytes, mut growth) = (vec![start], 0, 1);
        while !states.is_empty() {
            bytes += 1;
            let mut next = Vec::new();
            for state in states {
                for byte in 1..=u8::MAX {
                    let place = state ^ usize::from(byte);
                    let unit = self.unit(place)?;
                    if unit.label() != u32::from(byte)
                        || std::mem::replace(&mut visited[place], true)
                    {
                        continue;
                    }
                    let state = place ^ unit.offset();
                    if unit.has_leaf() {
                        growth = growth.max(self.replacement(self.unit(state)?)?.div_ceil(bytes));
                    }
                    next.push(state);
                }
            }
            states = next;
        }
        Ok(growth)
    }

    /// Bytes of what stands at a leaf.
    fn replacement(&self, leaf: Unit) -> Result<usize, String> {
        let place = leaf.value();
        let rest = self.replacements.get(place..);
        let rest = rest
            .ok_or_else(|| format!("it names a replacement at byte {place}, which isn't there"))?;
        Ok(rest.find('\0').unwrap_or(rest.len()))
    }
}
