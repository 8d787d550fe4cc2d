//! NumPy's `.npy` format, version 1.0: a header, then the rows as little-endian float32.
//!
//! The header has room for any number of rows and is written again, with the right one, at the end.
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

use std::io::{self, Seek, SeekFrom, Write};

/// Bytes of the header, a multiple of 64 so that the data is aligned.
const HEADER: usize = 128;

/// Writes a matrix of float32, row by row.
#[derive(Debug)]
pub(crate) struct NpyWriter<W> {
    out: W,
    rows: u64,
    columns: usize,
}

impl<W: Write + Seek> NpyWriter<W> {
    /// Begins a matrix with so many columns.
    pub(crate) fn new(mut out: W, columns: usize) -> io::Result<Self> {
        out.write_all(&header(0, columns))?;
        Ok(Self { out, rows: 0, columns })
    }

    /// Writes a row, or one of NaN if there is none.
    pub(crate) fn row(&mut self, row: Option<&[f32]>) -> io::Result<()> {
        if let Some(row) = row.filter(|row| row.len() != self.columns) {
            let (found, expected) = (row.len(), self.columns);
            return Err(io::Error::other(format!("a row of {found} values, not {expected}")));
        }
        let bytes: Vec<u8> = match row {
            Some(row) => row.iter().flat_map(|value| value.to_le_bytes()).collect(),
            None => f32::NAN.to_le_bytes().repeat(self.columns),
        };
        self.rows += 1;
        self.out.write_all(&bytes)
    }

    /// Writes the number of rows into the header and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header(self.rows, self.columns))?;
        Ok(self.out)
    }
}

/// Magic, version, length of the rest, and the rest: a Python dictionary, padded, with a newline.
fn header(rows: u64, columns: usize) -> Vec<u8> {
    const PREFIX: usize = 10;
    let shape = format!("({rows}, {columns})");
    let rest = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(b"\x93NUMPY\x01\x00");
    header.extend_from_slice(&[(HEADER - PREFIX) as u8, 0]);
    header.extend_from_slice(rest.as_bytes());
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let mut writer = NpyWriter::new(Cursor::new(Vec::new()), 2).unwrap();
        writer.row(Some(&[1.0, -2.5])).unwrap();
        writer.row(None).unwrap();
        writer.row(Some(&[0.0, f32::MIN_POSITIVE])).unwrap();
        let bytes = writer.finish().unwrap().into_inner();

        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!((10 + length) % 64, 0);
        let (header, data) = bytes.split_at(10 + length);
        let dictionary = str::from_utf8(&header[10..]).unwrap();
        assert!(dictionary.ends_with('\n'));
        assert_eq!(
            dictionary.trim_end(),
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"
        );
        let values: Vec<f32> = data
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_eq!(values[..2], [1.0, -2.5]);
        assert!(values[2].is_nan() && values[3].is_nan());
        assert_eq!(values[4..], [0.0, f32::MIN_POSITIVE]);
    }

    #[test]
    fn the_largest_shape_fits_into_the_header() {
        assert_eq!(header(u64::MAX, usize::MAX).len(), HEADER);
        assert_eq!(header(u64::MAX, usize::MAX).iter().filter(|&&byte| byte == b'}').count(), 1);
        assert_eq!(header(0, 1).len(), HEADER);
    }

    #[test]
    fn a_row_of_another_length_is_refused() {
        let mut writer = NpyWriter::new(Cursor::new(Vec::new()), 2).unwrap();
        assert!(writer.row(Some(&[1.0])).is_err());
    }
}
