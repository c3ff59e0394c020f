//! A tiny HTTP server on this machine, for the tests of downloads.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a request asked for.
pub(super) struct Request {
    pub path: String,
    /// The first byte wanted, if the request had a `Range`.
    pub from: Option<usize>,
}

/// What the server answers.
pub(super) struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
    /// Value of `Content-Range`.
    pub range: Option<String>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Reply {
    pub fn ok(body: &[u8]) -> Self {
        Self { status: 200, body: body.to_vec(), range: None, cut: None }
    }

    pub fn status(status: u16) -> Self {
        Self { status, body: b"<html>no</html>".to_vec(), range: None, cut: None }
    }

    pub fn cut_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }

    /// The file as an ordinary server gives it: whole, or from the wanted byte on.
    pub fn file(body: &[u8], request: &Request) -> Self {
        match request.from {
            None => Self::ok(body),
            Some(from) if from >= body.len() => Self::status(416),
            Some(from) => Self {
                status: 206,
                body: body[from..].to_vec(),
                range: Some(format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
                cut: None,
            },
        }
    }
}

/// A running server; it lives as long as the test's process.
pub(super) struct Server {
    pub base: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server that answers with `answer`.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { base, seen }
    }

    /// The first bytes wanted by the requests so far, in order.
    pub fn ranges(&self) -> Vec<Option<usize>> {
        self.seen.lock().unwrap().iter().map(|request| request.from).collect()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut from = None;
    for line in lines {
        let line = line.ok()?.to_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok();
        }
        if line.is_empty() {
            break;
        }
    }
    let request = Request { path, from };
    let Reply { status, body, range, cut } = answer(&request);
    log.lock().unwrap().push(request);
    let range = range.map(|range| format!("Content-Range: {range}\r\n")).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body[..cut.unwrap_or(body.len())]).ok()?;
    stream.flush().ok()
}
