//! A pickle's bytes, read one after the other.

use std::str;

use super::Fault;

/// The pickle's bytes, and how far they are read.
pub(super) struct Code<'p> {
    bytes: &'p [u8],
    pub(super) at: usize,
}

impl<'p> Code<'p> {
    pub(super) fn new(bytes: &'p [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'p [u8], Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or_else(|| {
            let expected = format!("{count} bytes longer (is the file cut off?)");
            Fault::new("the pickle", expected, format!("at its end after {}", rest.len()))
        })?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.take(N)?;
        Ok(taken.try_into().unwrap_or([0; N]))
    }

    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    /// A length of one, four or eight bytes.
    pub(super) fn length<const N: usize>(&mut self) -> Result<usize, Fault> {
        let mut length = [0; 8];
        for (to, from) in length.iter_mut().zip(self.array::<N>()?) {
            *to = from;
        }
        // What does not fit is longer than any pickle.
        Ok(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX))
    }

    pub(super) fn text(&mut self, length: usize) -> Result<&'p str, Fault> {
        let text = str::from_utf8(self.take(length)?);
        text.map_err(|_| Fault::new("the text", "UTF-8", "something else"))
    }

    pub(super) fn line(&mut self) -> Result<&'p str, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        let line = self.text(length)?;
        self.take(1)?;
        Ok(line)
    }
}

/// The number that these bytes are in two's complement, if it has at most 64 bits.
pub(super) fn small(bytes: &[u8]) -> Option<i64> {
    let sign = bytes.last().map_or(0, |last| if last >> 7 == 1 { u8::MAX } else { 0 });
    let mut all = [sign; 8];
    all.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(all))
}
