//! Tasks and blocking work, begun in one shape: what tokio generates for a task is generated
//! for each type of future, a dozen functions of it, and the executable has hundreds. In a box
//! they are all of the type of what they give.

use std::pin::Pin;

use tokio::task::JoinHandle;

/// A future of any kind, in a box.
pub type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// In a box, for what takes tasks by itself (`JoinSet`).
pub fn boxed<T>(work: impl Future<Output = T> + Send + 'static) -> Work<T> {
    Box::pin(work)
}

/// `tokio::spawn`.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(boxed(work))
}

/// `tokio::task::spawn_blocking`.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    tokio::task::spawn_blocking(work)
}
