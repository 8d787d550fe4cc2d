//! A connection that speaks as much HTTP/1.1 as a measurement needs: requests made beforehand, one
//! at a time, and replies that say their length.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEAD_END: &[u8] = b"\r\n\r\n";

/// A reply's status and body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
}

/// A kept-alive connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(host: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Sends a whole request and reads the whole reply.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> io::Result<Reply<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head_end = loop {
            self.read().await?;
            if let Some(at) = find(&self.buffer, HEAD_END) {
                break at + HEAD_END.len();
            }
        };
        let ResponseHead { status, body_bytes } = ResponseHead::parse(&self.buffer[..head_end])
            .ok_or_else(|| io::Error::other("the reply's head has no status or content-length"))?;
        self.buffer.reserve((head_end + body_bytes).saturating_sub(self.buffer.len()));
        while self.buffer.len() < head_end + body_bytes {
            self.read().await?;
        }
        Ok(Reply { status, body: &self.buffer[head_end..][..body_bytes] })
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct ResponseHead {
    status: u16,
    body_bytes: usize,
}

impl ResponseHead {
    fn parse(head: &[u8]) -> Option<Self> {
        let mut lines = str::from_utf8(head).ok()?.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let mut fields = lines.filter_map(|line| line.split_once(':'));
        let (_, length) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
        Some(Self { status, body_bytes: length.trim().parse().ok()? })
    }
}

/// Where `what` begins.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_whatever_the_case_of_their_names() {
        let head =
            ResponseHead::parse(b"HTTP/1.1 429 Too Many\r\nContent-Length: 17\r\nx: y\r\n\r\n");
        assert_eq!(head, Some(ResponseHead { status: 429, body_bytes: 17 }));
        assert_eq!(
            ResponseHead::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            None
        );
    }
}
