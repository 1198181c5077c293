//! The page of figures: `GET /status` answers how things are at every worker, in JSON. It shows players' and peers' addresses
//! to whoever can reach it, and changes nothing. Where only this host can, a page of somebody else's in a browser here cannot:
//! its questions name its own domain.
//!
//! A question travels `connection -> keeper -> worker` and back. A worker that does not answer is shown as silent.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::limits;
use crate::proto::http::{self, Get, Question, Status};
use crate::worker::{self, Figures};

/// Where figures are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Admin {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// The same, for a daemon that nobody told where: when another daemon has it, this one goes without.
    Beside(PathBuf),
}

/// Somebody wants to know how things are.
pub(super) type Asker = oneshot::Sender<worker::Status>;

/// Questions that may wait for one worker.
pub(super) const QUESTIONS_MAX: usize = limits::ADMIN_CONNECTIONS_MAX;

/// The page, open. Its socket in the file system goes with it.
pub(super) struct Page {
    listener: Listener,
    path: Option<PathBuf>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Admin {
    /// A socket beside the pid file, with its name.
    #[must_use]
    pub fn beside(pid_file: &Path) -> Self {
        Self::Beside(pid_file.with_extension("sock"))
    }
}

impl Page {
    /// `None` when the place that nobody named is taken.
    pub(super) async fn open(admin: &Admin) -> io::Result<Option<Self>> {
        match admin {
            Admin::Tcp(address) => {
                if !address.ip().is_loopback() {
                    tracing::warn!(%address, "GET /status shows players' addresses to everybody who reaches it");
                }
                let listener = Listener::Tcp(TcpListener::bind(address).await?);
                Ok(Some(Self { listener, path: None }))
            }
            Admin::Unix(path) => Self::at(path).map(Some),
            Admin::Beside(path) => match Self::at(path) {
                Ok(page) => Ok(Some(page)),
                Err(error) => {
                    tracing::info!(%error, path = %path.display(), "`gateway status` cannot find this daemon: name a place with --admin");
                    Ok(None)
                }
            },
        }
    }

    fn at(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_behind(&path) => {
                fs::remove_file(&path)?;
                UnixListener::bind(&path)?
            }
            listener => listener?,
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener: Listener::Unix(listener), path: Some(path) })
    }

    /// Browsers on this host reach it, and nobody else.
    fn is_local(&self) -> bool {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().is_ok_and(|at| at.ip().is_loopback()),
            Listener::Unix(_) => false,
        }
    }

    /// Answers for ever.
    pub(super) async fn serve(self, workers: Vec<mpsc::Sender<Asker>>) {
        let (workers, places) = (Arc::new(workers), Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS_MAX)));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok(stream) = self.listener.accept().await else {
                tokio::time::sleep(limits::ACCEPT_PAUSE).await; // descriptors or memory have run out
                continue;
            };
            let (workers, is_local) = (workers.clone(), self.is_local());
            tokio::spawn(async move {
                let _ = timeout(limits::ADMIN_TIMEOUT, answer(stream, is_local, &workers)).await; // who is slower has gone
                drop(place);
            });
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Nobody listens at a socket whose daemon was killed.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = std::os::unix::net::UnixStream::connect(path);
    is_socket && refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

async fn answer(mut stream: Box<dyn Stream>, is_local: bool, workers: &[mpsc::Sender<Asker>]) -> io::Result<()> {
    let mut head = Vec::with_capacity(http::HEAD_BYTES_MAX);
    let answer = loop {
        match Question::parse(&head) {
            Question::Partial => {
                if (&mut stream).take((http::HEAD_BYTES_MAX - head.len()) as u64).read_buf(&mut head).await? == 0 {
                    return Ok(()); // it has changed its mind
                }
            }
            Question::Get(Get { by_domain: true, .. }) if is_local => break Status::Misdirected.answer(None),
            Question::Get(Get { path: "/status", .. }) => {
                break Status::Ok.answer(Some(&status(workers).await.to_string()));
            }
            Question::Get(_) => break Status::NotFound.answer(None),
            Question::Refused(status) => break status.answer(None),
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// How things are, all workers together.
async fn status(workers: &[mpsc::Sender<Asker>]) -> Value {
    let mut answers = Vec::new();
    for worker in workers {
        let (asker, answer) = oneshot::channel();
        answers.push(worker.try_send(asker).ok().map(|()| answer));
    }
    let mut heard = Vec::new();
    for answer in answers {
        heard.push(match answer {
            Some(answer) => timeout(limits::ADMIN_PATIENCE, answer).await.ok().and_then(Result::ok),
            None => None,
        });
    }
    let silent = heard.iter().filter(|status| status.is_none()).count();
    let rendezvous = rendezvous(&heard);
    let known: Vec<_> = heard.into_iter().flatten().collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "workers": workers.len(),
        "workers_silent": silent,
        "connections": known.iter().map(|status| status.connections).sum::<usize>(),
        "peers": known.iter().flat_map(|status| &status.peers).collect::<Vec<_>>(),
        "peers_left_out": known.iter().map(|status| status.peers_left_out).sum::<usize>(),
        "rendezvous": rendezvous,
    })
}

/// The figures of a rendezvous: all workers together, and each of them. Null where there is none.
fn rendezvous(heard: &[Option<worker::Status>]) -> Value {
    let workers: Vec<Option<Figures>> = heard.iter().map(|status| status.as_ref()?.rendezvous).collect();
    if workers.iter().all(Option::is_none) {
        return Value::Null;
    }
    let mut all = json!(workers.iter().flatten().copied().sum::<Figures>());
    all["workers"] = json!(workers);
    all
}

impl FromStr for Admin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path is missing behind `unix:`"),
            Some(path) => Ok(Self::Unix(path.into())),
            None => {
                text.parse().map(Self::Tcp).map_err(|_error| "expected an address such as 127.0.0.1:9001, or unix:PATH")
            }
        }
    }
}

impl TryFrom<String> for Admin {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::fmt::Display for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) | Self::Beside(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
