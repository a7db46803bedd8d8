//! The values of one label of all nodes, as numbers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::snapshot::Snapshot;

/// Of a node without the label.
pub const NONE: u32 = u32::MAX;

/// Nodes with the same value have the same number, its domain; numbers are dense.
#[derive(Debug)]
pub struct Column {
    /// By the position of the node.
    pub of_node: Vec<u32>,
    pub domains: usize,
}

impl Column {
    fn new(key: &str, snapshot: &Snapshot) -> Self {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let of_node = snapshot.nodes().iter().map(|node| {
            let Some(value) = node.label(key) else { return NONE };
            let next = numbers.len() as u32;
            *numbers.entry(value).or_insert(next)
        });
        let of_node = of_node.collect();
        Self { of_node, domains: numbers.len() }
    }

    /// The domain of a node.
    pub fn at(&self, node: usize) -> Option<usize> {
        let domain = self.of_node[node];
        (domain != NONE).then_some(domain as usize)
    }
}

/// Columns by their labels, as long as nodes keep theirs.
#[derive(Debug, Default)]
pub struct Columns {
    layout: u64,
    held: HashMap<String, Arc<Column>>,
}

impl Columns {
    pub fn of(&mut self, key: &str, snapshot: &Snapshot) -> Arc<Column> {
        if self.layout != snapshot.layout() {
            self.layout = snapshot.layout();
            self.held.clear();
        }
        if let Some(column) = self.held.get(key) {
            return column.clone();
        }
        let column = Arc::new(Column::new(key, snapshot));
        self.held.insert(key.to_owned(), column.clone());
        column
    }
}

/// A number for each domain of a label.
#[derive(Debug, Clone)]
pub struct Tally {
    pub column: Arc<Column>,
    pub counts: Vec<i64>,
}

impl Tally {
    pub fn new(column: Arc<Column>) -> Self {
        let counts = vec![0; column.domains];
        Self { column, counts }
    }

    /// That of the node's domain.
    pub fn at(&self, node: usize) -> Option<i64> {
        self.column.at(node).map(|domain| self.counts[domain])
    }

    pub fn add(&mut self, node: usize, by: i64) {
        if let Some(domain) = self.column.at(node) {
            self.counts[domain] += by;
        }
    }
}
