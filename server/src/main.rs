use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let s = Arc::new(server::sandbox::Sandboxes::new()?);
    let (txs, ths): (Vec<_>, Vec<_>) = (0..2).map(|_| {
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel::<std::net::TcpStream>();
        let s = s.clone();
        let t = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
                while let Some(c) = rx.recv().await {
                    let s = s.clone();
                    tokio::spawn(async move {
                        let c = tokio::net::TcpStream::from_std(c).unwrap();
                        let b = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        let _ = b.serve_connection(TokioIo::new(c), hyper::service::service_fn(move |r| s.clone().handle(r))).await;
                    });
                }
            });
        });
        (tx, t)
    }).unzip();
    let l = std::net::TcpListener::bind("127.0.0.1:5000")?;
    for (i, c) in l.incoming().enumerate() { let c = c?; c.set_nodelay(true)?; c.set_nonblocking(true)?; txs[i % 2].send(c)?; }
    drop(ths);
    Ok(())
}
