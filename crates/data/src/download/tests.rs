use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::server::{Reply, Server};
use super::*;
use crate::catalogue::{Checksum, published};
use crate::idx::sha256;
use crate::idx::tests::{gzip, idx_labels};
use crate::{LoadOptions, load};

/// A file of 20,000 labels, its part of a data set, and the packed bytes.
fn sample() -> (Part, Vec<u8>) {
    let labels: Vec<u8> = (0..20_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as u8 % 10).collect();
    let plain = idx_labels(&labels);
    let sum = Box::leak(sha256(&plain).into_boxed_str());
    (Part { file: "train-labels-idx1-ubyte", checksum: Checksum::Unpacked(sum) }, gzip(&plain))
}

fn fetch_sample(folder: &Path, part: &Part, mirrors: &[&Server]) -> Result<PathBuf, DataError> {
    let mirrors: Vec<String> = mirrors.iter().map(|server| server.base.clone()).collect();
    fetch(DataSetName::Mnist, part, folder, &mirrors, &())
}

/// Whether the folder holds the file, whole, and nothing half done.
fn is_whole(folder: &Path, part: &Part, packed: &[u8]) -> bool {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names == [".lock".to_owned(), format!("{}.gz", part.file)]
        && fs::read(folder.join(&names[1])).unwrap() == packed
}

#[test]
fn a_file_is_fetched_whole_with_progress() {
    #[derive(Default)]
    struct Count(AtomicU64, AtomicU64, AtomicU64);
    impl Progress for Count {
        fn begin(&self, what: &str, total_bytes: Option<u64>) {
            assert!(what.contains("train-labels"));
            self.0.store(total_bytes.unwrap(), Ordering::SeqCst);
        }
        fn advance(&self, bytes: u64) {
            self.1.fetch_add(bytes, Ordering::SeqCst);
        }
        fn end(&self) {
            self.2.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (part, packed) = sample();
    let body = packed.clone();
    let server = Server::start(move |request| Reply::file(&body, request));
    let folder = tempfile::tempdir().unwrap();
    let nested = folder.path().join("not/there/yet");
    let count = Count::default();
    let path = fetch(DataSetName::Mnist, &part, &nested, std::slice::from_ref(&server.base), &count).unwrap();
    assert_eq!(path, nested.join("train-labels-idx1-ubyte.gz"));
    assert!(is_whole(&nested, &part, &packed));
    assert_eq!(count.0.into_inner(), packed.len() as u64);
    assert_eq!(count.1.into_inner(), packed.len() as u64);
    assert_eq!(count.2.into_inner(), 1);
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn a_cut_connection_is_taken_up_where_it_stopped() {
    let (part, packed) = sample();
    let body = packed.clone();
    let server = Server::start(move |request| {
        let reply = Reply::file(&body, request);
        if request.from.is_none() { reply.cut_after(3000) } else { reply }
    });
    let folder = tempfile::tempdir().unwrap();
    fetch_sample(folder.path(), &part, &[&server]).unwrap();
    assert!(is_whole(folder.path(), &part, &packed));
    assert_eq!(server.ranges(), [None, Some(3000)]);
}

#[test]
fn an_earlier_run_is_taken_up_at_another_mirror() {
    let (part, packed) = sample();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train-labels-idx1-ubyte.gz.part"), &packed[..1234]).unwrap();
    let body = packed.clone();
    let dead = Server::start(|_| Reply::status(503));
    let server = Server::start(move |request| Reply::file(&body, request));
    fetch_sample(folder.path(), &part, &[&dead, &server]).unwrap();
    assert!(is_whole(folder.path(), &part, &packed));
    assert_eq!(server.ranges(), [Some(1234)]);
}

#[test]
fn a_part_that_does_not_fit_is_fetched_afresh() {
    let (part, packed) = sample();
    for (left, ignores_ranges, expected) in [
        // Other bytes than the file's, and more bytes than the file has (416), and a server without ranges
        // (200).
        (vec![7; 500], false, vec![Some(500), None]),
        (vec![7; 90_000], false, vec![Some(90_000), None]),
        (packed[..500].to_vec(), true, vec![Some(500)]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("train-labels-idx1-ubyte.gz.part"), left).unwrap();
        let body = packed.clone();
        let server =
            Server::start(
                move |request| {
                    if ignores_ranges { Reply::ok(&body) } else { Reply::file(&body, request) }
                },
            );
        fetch_sample(folder.path(), &part, &[&server]).unwrap();
        assert!(is_whole(folder.path(), &part, &packed));
        assert_eq!(server.ranges(), expected);
    }
}

#[test]
fn a_mirror_with_the_wrong_file_is_passed_over() {
    let (part, packed) = sample();
    let other = gzip(&idx_labels(&[1, 2, 3]));
    let page = Server::start(|_| Reply::ok(b"<html>please log in to the network</html>"));
    let wrong = Server::start(move |request| Reply::file(&other, request));
    let body = packed.clone();
    let good = Server::start(move |request| Reply::file(&body, request));
    let folder = tempfile::tempdir().unwrap();
    fetch_sample(folder.path(), &part, &[&page, &wrong, &good]).unwrap();
    assert!(is_whole(folder.path(), &part, &packed));
    assert_eq!(good.ranges(), [None]);
}

#[test]
fn when_every_mirror_fails_one_error_lists_them_all() {
    let (part, _) = sample();
    let missing = Server::start(|_| Reply::status(404));
    let other = gzip(&idx_labels(&[1, 2, 3]));
    let wrong = Server::start(move |request| Reply::file(&other, request));
    let cut = Server::start(|_| Reply::ok(&[0; 100]).cut_after(0));
    let folder = tempfile::tempdir().unwrap();
    let closed = "http://127.0.0.1:1/".to_owned();
    // A server that does not speak TLS: this also builds the client's TLS configuration.
    let plain = missing.base.replace("http:", "https:");
    let mirrors = [missing.base.clone(), wrong.base.clone(), cut.base.clone(), closed, plain];
    let message =
        fetch(DataSetName::FashionMnist, &part, folder.path(), &mirrors, &()).unwrap_err().to_string();
    println!("{message}");
    assert!(message.contains(&format!("{}train-labels-idx1-ubyte.gz (HTTP 404)", missing.base)), "{message}");
    assert!(message.contains("wrong checksum: expected sha256"), "{message}");
    assert!(message.contains("the connection broke after 0"), "{message}");
    assert!(message.contains("http://127.0.0.1:1/train-labels-idx1-ubyte.gz ("), "{message}");
    for advice in ["fashion-mnist", "by hand into", "FLATLAND_MIRRORS", "--dataset digits"] {
        assert!(message.contains(advice), "{advice}: {message}");
    }
    assert!(message.contains(&folder.path().display().to_string()), "{message}");
    assert!(!folder.path().join("train-labels-idx1-ubyte.gz").exists());
}

#[test]
fn threads_that_fetch_at_once_ask_once() {
    let (part, packed) = sample();
    let body = packed.clone();
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&asked);
    let server = Server::start(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(200));
        Reply::file(&body, request)
    });
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch_sample(folder.path(), &part, &[&server]).unwrap());
        }
    });
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert!(is_whole(folder.path(), &part, &packed));
}

#[test]
fn own_mirrors_come_first() {
    let mnist = published(DataSetName::Mnist).unwrap();
    let mirrors = list_mirrors(&mnist, "http://a.example/data/, http://b.example ,");
    assert_eq!(mirrors[..2], ["http://a.example/data/mnist/", "http://b.example/mnist/"]);
    assert_eq!(mirrors[2..], *mnist.mirrors);
    assert_eq!(list_mirrors(&mnist, ""), mnist.mirrors);
}

/// Not a test by itself: what the processes of the next test do.
#[test]
#[ignore = "run by two_processes_load_mnist_from_an_own_mirror"]
fn child_that_loads_mnist() {
    let data = load(DataSetName::Mnist, &LoadOptions::default(), &()).unwrap();
    assert_eq!(data.train.labels.len(), 60_000);
}

#[test]
fn two_processes_load_mnist_from_an_own_mirror() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/mnist");
    if !shared.is_dir() {
        println!("skipped: {} is not there", shared.display());
        return;
    }
    let server = Server::start(move |request| {
        match fs::read(shared.join(request.path.trim_start_matches("/mnist/"))) {
            Ok(body) => Reply::file(&body, request),
            Err(_) => Reply::status(404),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let child = || {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "download::tests::child_that_loads_mnist", "--include-ignored"])
            .env(crate::DATA_VARIABLE, folder.path())
            .env(MIRRORS_VARIABLE, &server.base)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut children = [child(), child()];
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.ranges(), [None; 4]);
    let count = fs::read_dir(folder.path().join("mnist")).unwrap().count();
    assert_eq!(count, 5, "four files and the lock");
}
