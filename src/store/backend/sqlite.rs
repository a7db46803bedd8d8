//! The datastore in one SQLite file: WAL, synchronous FULL, one writer thread that
//! commits what waits as a group.
//!
//! Relaxed writes stay in the open transaction until a durable one, or time, commits
//! them. Readers see them all the same: while some are open, reads run on the writer's
//! connection.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::{
    Backend, Durability, Error, Event, KeyValue, Outcome, Range, RangeRequest, Result, Watch, Write,
};

/// Writes that wait for the writer; a further one waits for room.
const QUEUE_WRITES_MAX: usize = 4_096;
/// Writes in one commit.
const GROUP_WRITES_MAX: usize = 512;
/// Relaxed writes are committed when this old, or this many.
const RELAXED_AGE_MAX: Duration = Duration::from_secs(300);
const RELAXED_WRITES_MAX: usize = 4_096;
/// Batches a watcher may lag behind before its watch ends.
const WATCH_BATCHES_MAX: usize = 8_192;
/// Rows deleted in one step of a compaction, so that writers get their turn.
const COMPACT_ROWS: u64 = 1_000;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS kv (
    rev INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    create_rev INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    value BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS kv_key_rev ON kv (key, rev);
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, rev INTEGER NOT NULL) WITHOUT ROWID;
";

type Reply<T> = oneshot::Sender<Result<T>>;

enum Command {
    Write(Write, Durability, Reply<Outcome>),
    Range(RangeRequest, Reply<Range>),
    Watch(u64, Reply<Watch>),
    Compact(u64, Reply<u64>),
    Flush(Reply<()>),
}

struct Shared {
    /// Newest acknowledged revision.
    revision: AtomicU64,
    compacted: AtomicU64,
    /// The writer holds relaxed writes that other connections cannot see.
    open_writes: AtomicBool,
}

/// An open SQLite datastore.
pub struct Sqlite {
    shared: Arc<Shared>,
    commands: Option<std_mpsc::SyncSender<Command>>,
    reader: Arc<Mutex<Connection>>,
    writer: Option<std::thread::JoinHandle<()>>,
    /// Held for the lifetime of the store: one process per directory.
    _lock: File,
}

fn open_error<E: std::error::Error + Send + Sync + 'static>(
    action: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    let action = action.into();
    move |source| Error::Open { action, source: Box::new(source) }
}

fn disk(err: rusqlite::Error) -> Error {
    Error::Disk(err.to_string())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "cache_size", -2_048)?; // KiB
    db.pragma_update(None, "wal_autocheckpoint", 1_000)?; // pages
    db.pragma_update(None, "journal_size_limit", 8 << 20)?; // bytes
    // Else a statement is planned anew whenever its parameters change.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

impl Sqlite {
    /// Opens or makes `state.db` in `dir`.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process has it open.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(open_error(format!("create {}", dir.display())))?;
        let lock = File::create(dir.join("lock"))
            .map_err(open_error(format!("lock {}", dir.display())))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::InUse(dir.display().to_string()))?;

        let path = dir.join("state.db");
        let opening = || format!("open {}", path.display());
        let db = connect(&path).map_err(open_error(opening()))?;
        db.execute_batch(SCHEMA).map_err(open_error(opening()))?;
        let last: u64 = db
            .query_row("SELECT COALESCE(MAX(rev), 0) FROM kv", [], |row| row.get(0))
            .map_err(open_error(opening()))?;
        let mark = |name: &str| {
            db.query_row("SELECT rev FROM mark WHERE name = ?", [name], |row| row.get(0))
                .optional()
                .map(|found: Option<u64>| found.unwrap_or(0))
        };
        let compacted = mark("compacted").map_err(open_error(opening()))?;
        // A compaction may have deleted the newest row, a tombstone: its number is
        // never given twice. Revision 1 is the empty store's, as etcd's.
        let revision = last.max(compacted).max(1);
        let reader = connect(&path).map_err(open_error(opening()))?;

        let shared = Arc::new(Shared {
            revision: AtomicU64::new(revision),
            compacted: AtomicU64::new(compacted),
            open_writes: AtomicBool::new(false),
        });
        let (commands, receiver) = std_mpsc::sync_channel(QUEUE_WRITES_MAX);
        let mut writer = Writer {
            db,
            revision,
            compacted,
            shared: shared.clone(),
            relaxed: Vec::new(),
            relaxed_since: None,
            watchers: Vec::new(),
            fsyncs: base::metrics::register(
                "coracle_store_fsyncs",
                "Commits that waited for the disk",
                Counter::default(),
            ),
            bytes: base::metrics::register(
                "coracle_store_bytes_written",
                "Bytes of values written",
                Counter::default(),
            ),
        };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&receiver))
            .map_err(open_error("start the writer thread"))?;
        Ok(Self {
            shared,
            commands: Some(commands),
            reader: Arc::new(Mutex::new(reader)),
            writer: Some(writer),
            _lock: lock,
        })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(Error::Stopped)?;
        let mut command = command(reply);
        // The queue is full only when the disk stalls; waiting is the back-pressure.
        loop {
            match commands.try_send(command) {
                Ok(()) => break,
                Err(std_mpsc::TrySendError::Full(back)) => {
                    command = back;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(std_mpsc::TrySendError::Disconnected(_)) => return Err(Error::Stopped),
            }
        }
        answer.await.map_err(|_| Error::Stopped)?
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            error!("the datastore's writer thread panicked");
        }
    }
}

#[async_trait]
impl Backend for Sqlite {
    fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    fn oldest(&self) -> u64 {
        self.shared.compacted.load(Ordering::Acquire)
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let request = RangeRequest { prefix: key.to_string(), limit: 1, ..RangeRequest::default() };
        let range = self.range(request).await?;
        // The first key with this prefix is the key itself, if it exists.
        Ok(range.items.into_iter().find(|item| item.key == key))
    }

    async fn range(&self, request: RangeRequest) -> Result<Range> {
        if self.shared.open_writes.load(Ordering::Acquire) {
            return self.ask(|reply| Command::Range(request, reply)).await;
        }
        let (reader, newest) = (self.reader.clone(), self.revision());
        base::task::spawn_blocking(move || {
            let db = reader.lock();
            let compacted = compacted(&db).map_err(disk)?;
            range(&db, &request, newest, compacted)
        })
        .await
        .map_err(|_| Error::Stopped)?
    }

    async fn write(&self, write: Write, durability: Durability) -> Result<Outcome> {
        self.ask(|reply| Command::Write(write, durability, reply)).await
    }

    async fn watch(&self, after: u64) -> Result<Watch> {
        self.ask(|reply| Command::Watch(after, reply)).await
    }

    async fn compact(&self, revision: u64) -> Result<u64> {
        let mut total = 0;
        loop {
            let step = self.ask(|reply| Command::Compact(revision, reply)).await?;
            total += step;
            if step < COMPACT_ROWS {
                return Ok(total);
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.ask(Command::Flush).await
    }
}

fn compacted(db: &Connection) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT rev FROM mark WHERE name = 'compacted'")?
        .query_row([], |row| row.get(0))
        .optional()
        .map(|found| found.unwrap_or(0))
}

fn key_value(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        key: row.get(0)?,
        create_revision: row.get(1)?,
        mod_revision: row.get(2)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(3)?),
    })
}

/// The smallest text greater than every text with this prefix.
fn prefix_end(prefix: &str) -> String {
    // No key contains U+10FFFF.
    format!("{prefix}\u{10FFFF}")
}

fn range(db: &Connection, request: &RangeRequest, newest: u64, compacted: u64) -> Result<Range> {
    let revision = request.revision.unwrap_or(newest);
    if revision > newest {
        return Err(Error::Future { asked: revision, newest });
    }
    if request.revision.is_some() && revision < compacted {
        return Err(Error::Compacted { asked: revision, oldest: compacted });
    }
    let limit = if request.limit == 0 { i64::MAX } else { request.limit as i64 + 1 };
    let after = request.after.as_deref().unwrap_or("");
    let mut statement = db
        .prepare_cached(
            "SELECT key, create_rev, rev, value FROM kv AS a
             WHERE key >= ?1 AND key < ?2 AND key > ?3 AND rev <= ?4 AND deleted = 0
               AND NOT EXISTS (SELECT 1 FROM kv AS b
                               WHERE b.key = a.key AND b.rev > a.rev AND b.rev <= ?4)
             ORDER BY key LIMIT ?5",
        )
        .map_err(disk)?;
    let rows = statement
        .query_map(
            params![request.prefix, prefix_end(&request.prefix), after, revision, limit],
            key_value,
        )
        .map_err(disk)?;
    let mut items = rows.collect::<rusqlite::Result<Vec<_>>>().map_err(disk)?;
    let more = request.limit != 0 && items.len() > request.limit;
    if more {
        items.truncate(request.limit);
    }
    Ok(Range { revision, items, more })
}

/// A row of the table, as it is written.
#[derive(Clone)]
struct NewRow {
    rev: u64,
    key: String,
    create_rev: u64,
    deleted: bool,
    value: Bytes,
}

impl NewRow {
    fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached(
            "INSERT INTO kv (rev, key, create_rev, deleted, value)
             VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![self.rev, self.key, self.create_rev, self.deleted, self.value.as_ref()])
        .map(drop)
    }

    fn event(&self) -> Event {
        if self.deleted {
            return Event::Delete { key: self.key.clone(), revision: self.rev };
        }
        Event::Put(KeyValue {
            key: self.key.clone(),
            value: self.value.clone(),
            create_revision: self.create_rev,
            mod_revision: self.rev,
        })
    }
}

struct Writer {
    db: Connection,
    revision: u64,
    compacted: u64,
    shared: Arc<Shared>,
    /// Acknowledged rows in the open transaction; written again if it is lost.
    relaxed: Vec<NewRow>,
    relaxed_since: Option<Instant>,
    watchers: Vec<mpsc::Sender<Vec<Event>>>,
    fsyncs: Counter,
    bytes: Counter,
}

impl Writer {
    fn run(&mut self, commands: &std_mpsc::Receiver<Command>) {
        loop {
            let next = match self.relaxed_since {
                Some(since) => {
                    commands.recv_timeout(RELAXED_AGE_MAX.saturating_sub(since.elapsed()))
                }
                None => commands.recv().map_err(|_| std_mpsc::RecvTimeoutError::Disconnected),
            };
            let mut group = Vec::new();
            match next {
                Ok(Command::Write(write, durability, reply)) => {
                    group.push((write, durability, reply));
                }
                Ok(other) => {
                    self.other(other);
                    continue;
                }
                Err(std_mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(err) = self.flush() {
                        warn!(error = %err, "relaxed writes are not on disk yet");
                        self.relaxed_since = Some(Instant::now());
                    }
                    continue;
                }
                Err(std_mpsc::RecvTimeoutError::Disconnected) => break,
            }
            let mut after = None;
            while group.len() < GROUP_WRITES_MAX {
                match commands.try_recv() {
                    Ok(Command::Write(write, durability, reply)) => {
                        group.push((write, durability, reply));
                    }
                    Ok(other) => {
                        after = Some(other);
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.group(group);
            if let Some(other) = after {
                self.other(other);
            }
        }
        if let Err(err) = self.flush() {
            error!(error = %err, "relaxed writes were lost at the end");
        }
    }

    fn other(&mut self, command: Command) {
        // A reply that nobody waits for any more is nobody's loss.
        match command {
            Command::Write(write, durability, reply) => {
                self.group(vec![(write, durability, reply)])
            }
            Command::Range(request, reply) => {
                let _ = reply.send(range(&self.db, &request, self.revision, self.compacted));
            }
            Command::Watch(after, reply) => {
                let _ = reply.send(self.watch(after));
            }
            Command::Compact(revision, reply) => {
                let _ = reply.send(self.compact(revision));
            }
            Command::Flush(reply) => {
                let _ = reply.send(self.flush());
            }
        }
    }

    /// A statement that is run all the time, parsed once.
    fn perform(&self, statement: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(statement)?.execute([]).map(drop)
    }

    /// Opens the transaction if none is open.
    fn begin(&mut self) -> rusqlite::Result<()> {
        if self.db.is_autocommit() {
            self.perform("BEGIN IMMEDIATE")?;
            for row in &self.relaxed {
                row.insert(&self.db)?;
            }
        }
        Ok(())
    }

    fn group(&mut self, group: Vec<(Write, Durability, Reply<Outcome>)>) {
        let before = self.revision;
        let durable = group.iter().any(|(_, durability, _)| *durability == Durability::Durable)
            || self.relaxed.len() + group.len() > RELAXED_WRITES_MAX;
        let mut rows = Vec::with_capacity(group.len());
        let mut outcomes = Vec::with_capacity(group.len());
        let result = (|| -> rusqlite::Result<()> {
            self.begin()?;
            for (write, _, _) in &group {
                outcomes.push(self.one(write, &mut rows)?);
            }
            if durable && !rows.is_empty() {
                self.perform("COMMIT")?;
            }
            Ok(())
        })();
        if let Err(err) = result {
            self.revision = before;
            self.roll_back();
            let text = err.to_string();
            error!(error = %text, writes = group.len(), "writes refused");
            for (_, _, reply) in group {
                let _ = reply.send(Err(Error::Disk(text.clone())));
            }
            return;
        }
        let bytes: usize = rows.iter().map(|row| row.value.len() + row.key.len()).sum();
        self.bytes.inc_by(bytes as u64);
        let events: Vec<Event> = rows.iter().map(NewRow::event).collect();
        if self.db.is_autocommit() {
            self.committed();
        } else if rows.is_empty() && self.relaxed.is_empty() {
            self.roll_back();
        } else if !rows.is_empty() {
            self.relaxed.extend(rows);
            self.relaxed_since.get_or_insert_with(Instant::now);
            self.shared.open_writes.store(true, Ordering::Release);
        }
        // Watchers hear of a write before its writer does, so that whoever writes and
        // then reads a cache finds the write on its way there.
        self.publish(events);
        self.shared.revision.store(self.revision, Ordering::Release);
        for ((_, _, reply), outcome) in group.into_iter().zip(outcomes) {
            let _ = reply.send(Ok(outcome));
        }
    }

    fn committed(&mut self) {
        self.fsyncs.inc();
        self.relaxed.clear();
        self.relaxed_since = None;
        self.shared.open_writes.store(false, Ordering::Release);
    }

    /// Leaves the transaction; what was acknowledged in it is written again by the next.
    fn roll_back(&mut self) {
        if !self.db.is_autocommit()
            && let Err(err) = self.db.execute_batch("ROLLBACK")
        {
            error!(error = %err, "roll back");
        }
        if !self.relaxed.is_empty()
            && let Err(err) = self.begin()
        {
            warn!(error = %err, "relaxed writes wait for the disk");
            if !self.db.is_autocommit() {
                // Best effort: the next group tries again from the kept rows.
                let _ = self.db.execute_batch("ROLLBACK");
            }
        }
    }

    /// Applies one write inside the transaction.
    fn one(&mut self, write: &Write, rows: &mut Vec<NewRow>) -> rusqlite::Result<Outcome> {
        let key = write.key();
        let current = self
            .db
            .prepare_cached(
                "SELECT rev, create_rev, deleted FROM kv WHERE key = ? ORDER BY rev DESC LIMIT 1",
            )?
            .query_row([key], |row| {
                Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?, row.get::<_, bool>(2)?))
            })
            .optional()?;
        let live = current.filter(|(_, _, deleted)| !deleted);
        let next = self.revision + 1;
        let row = match (write, live) {
            (Write::Create { key, value }, None) => NewRow {
                rev: next,
                key: key.clone(),
                create_rev: next,
                deleted: false,
                value: value.clone(),
            },
            (Write::Update { key, value, expected }, Some((rev, create_rev, _)))
                if rev == *expected =>
            {
                NewRow {
                    rev: next,
                    key: key.clone(),
                    create_rev,
                    deleted: false,
                    value: value.clone(),
                }
            }
            (Write::Delete { key, expected }, Some((rev, create_rev, _))) if rev == *expected => {
                NewRow {
                    rev: next,
                    key: key.clone(),
                    create_rev,
                    deleted: true,
                    value: Bytes::new(),
                }
            }
            (Write::Create { .. } | Write::Update { .. } | Write::Delete { .. }, live) => {
                return match live {
                    None => Ok(Outcome::Conflict(None)),
                    Some((rev, ..)) => self
                        .db
                        .prepare_cached("SELECT key, create_rev, rev, value FROM kv WHERE rev = ?")?
                        .query_row([rev], key_value)
                        .map(|found| Outcome::Conflict(Some(found))),
                };
            }
        };
        row.insert(&self.db)?;
        self.revision = next;
        rows.push(row);
        Ok(Outcome::Done(next))
    }

    fn publish(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.watchers.retain(|watcher| match watcher.try_send(events.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                warn!("a watch of the datastore lags too far behind and is ended");
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    fn watch(&mut self, after: u64) -> Result<Watch> {
        if after < self.compacted {
            return Err(Error::Compacted { asked: after, oldest: self.compacted });
        }
        let mut statement = self
            .db
            .prepare_cached(
                "SELECT key, create_rev, rev, value, deleted FROM kv WHERE rev > ? ORDER BY rev",
            )
            .map_err(disk)?;
        let missed = statement
            .query_map([after], |row| {
                let kv = key_value(row)?;
                Ok(if row.get(4)? {
                    Event::Delete { key: kv.key, revision: kv.mod_revision }
                } else {
                    Event::Put(kv)
                })
            })
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
            .map_err(disk)?;
        drop(statement);
        let (sender, batches) = mpsc::channel(WATCH_BATCHES_MAX);
        if !missed.is_empty() && sender.try_send(missed).is_err() {
            return Err(Error::Stopped);
        }
        self.watchers.push(sender);
        Ok(Watch { batches, revision: self.revision })
    }

    /// One step: at most [`COMPACT_ROWS`] superseded rows go.
    fn compact(&mut self, revision: u64) -> Result<u64> {
        let revision = revision.min(self.revision);
        let work = (|| -> rusqlite::Result<u64> {
            self.begin()?;
            let gone = self
                .db
                .prepare_cached(
                    "DELETE FROM kv WHERE rev IN (
                         SELECT a.rev FROM kv AS a WHERE a.rev <= ?1 AND (
                             (a.deleted = 1 AND NOT EXISTS (
                                 SELECT 1 FROM kv AS c WHERE c.key = a.key AND c.rev < a.rev))
                             OR EXISTS (SELECT 1 FROM kv AS b
                                        WHERE b.key = a.key AND b.rev > a.rev AND b.rev <= ?1))
                         ORDER BY a.rev LIMIT ?2)",
                )?
                .execute(params![revision, COMPACT_ROWS])?;
            self.db
                .prepare_cached(
                    "INSERT INTO mark (name, rev) VALUES ('compacted', ?)
                     ON CONFLICT (name) DO UPDATE SET rev = max(rev, excluded.rev)",
                )?
                .execute([revision])?;
            self.perform("COMMIT")?;
            Ok(gone as u64)
        })();
        match work {
            Ok(gone) => {
                self.committed();
                self.compacted = self.compacted.max(revision);
                self.shared.compacted.store(self.compacted, Ordering::Release);
                if gone > 0
                    && let Err(err) = self.db.execute_batch("PRAGMA incremental_vacuum(1000)")
                {
                    warn!(error = %err, "give space back");
                }
                Ok(gone)
            }
            Err(err) => {
                self.roll_back();
                Err(disk(err))
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        if self.relaxed.is_empty() {
            return Ok(());
        }
        let written = self.begin().and_then(|()| self.perform("COMMIT"));
        match written {
            Ok(()) => {
                self.committed();
                Ok(())
            }
            Err(err) => {
                self.roll_back();
                Err(disk(err))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sqlite_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let store = Sqlite::open(dir.path()).unwrap();
        crate::contract::check(&store).await;
    }

    #[tokio::test]
    async fn a_second_open_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Sqlite::open(dir.path()).unwrap();
        assert!(matches!(Sqlite::open(dir.path()), Err(Error::InUse(_))));
    }

    #[tokio::test]
    async fn revisions_and_values_survive_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let create = |key: &str| Write::Create { key: key.into(), value: Bytes::from("v") };
        let (first, second) = {
            let store = Sqlite::open(dir.path()).unwrap();
            let Outcome::Done(first) =
                store.write(create("/a"), Durability::Durable).await.unwrap()
            else {
                panic!("created")
            };
            let Outcome::Done(second) =
                store.write(create("/b"), Durability::Relaxed).await.unwrap()
            else {
                panic!("created")
            };
            (first, second)
        };
        let store = Sqlite::open(dir.path()).unwrap();
        assert_eq!(store.revision(), second);
        assert_eq!(store.get("/a").await.unwrap().unwrap().mod_revision, first);
        assert_eq!(store.get("/b").await.unwrap().unwrap().mod_revision, second);
        // Compacting away the newest tombstone must not free its number.
        let gone = Write::Delete { key: "/b".into(), expected: second };
        let Outcome::Done(last) = store.write(gone, Durability::Durable).await.unwrap() else {
            panic!("deleted")
        };
        store.compact(last).await.unwrap();
        drop(store);
        assert_eq!(Sqlite::open(dir.path()).unwrap().revision(), last);
    }
}
