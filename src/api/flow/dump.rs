//! `/debug/api_priority_and_fairness/...`: levels, queues and requests of this moment, in
//! upstream's columns.

use std::time::Duration;

use super::fair::Response;
use super::{Flow, Level};

/// Queues that are shown one by one even if they are empty.
const EMPTY_QUEUES_MAX: u32 = 10_000;
/// Columns are this wide at least, as upstream's table writer makes them.
const WIDTH_MIN: usize = 8;

impl Flow {
    pub fn dump_priority_levels(&self) -> String {
        let mut rows = vec![strings(&[
            "PriorityLevelName",
            "ActiveQueues",
            "IsIdle",
            "IsQuiescing",
            "WaitingRequests",
            "ExecutingRequests",
        ])];
        for level in &self.plan.read().levels {
            let state = level.state.lock();
            let active = state.seats.queues().values().filter(|q| !q.waiting.is_empty()).count();
            rows.push(vec![
                level.name.clone(),
                active.to_string(),
                state.seats.is_idle().to_string(),
                "false".into(),
                state.seats.waiting().to_string(),
                state.seats.executing().to_string(),
            ]);
        }
        table(&rows)
    }

    pub fn dump_queues(&self) -> String {
        let mut rows = vec![strings(&[
            "PriorityLevelName",
            "Index",
            "PendingRequests",
            "ExecutingRequests",
            "SeatsInUse",
            "NextDispatchR",
            "InitialSeatsSum",
            "MaxSeatsSum",
            "TotalWorkSum",
        ])];
        for level in &self.plan.read().levels {
            queues(level, &mut rows);
        }
        table(&rows)
    }

    pub fn dump_requests(&self, details: bool) -> String {
        let mut head = strings(&[
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
        ]);
        if details {
            head.extend(strings(&[
                "UserName",
                "Verb",
                "APIPath",
                "Namespace",
                "Name",
                "APIVersion",
                "Resource",
                "SubResource",
            ]));
        }
        let mut rows = vec![head];
        for level in &self.plan.read().levels {
            requests(level, details, &mut rows);
        }
        table(&rows)
    }
}

fn queues(level: &Level, rows: &mut Vec<Vec<String>>) {
    let state = level.state.lock();
    let Response::Queue { queues, .. } = state.seats.response else { return };
    let held = state.seats.queues();
    let all = if queues <= EMPTY_QUEUES_MAX { queues } else { 0 };
    let beyond = held.range(all..).map(|(index, _)| *index);
    for index in (0..all).chain(beyond) {
        let queue = held.get(&index);
        let sum = |of: &dyn Fn(&super::fair::Work) -> u32| {
            let waiting = queue.into_iter().flat_map(|queue| &queue.waiting);
            waiting.map(|waiting| of(&waiting.work)).sum::<u32>().to_string()
        };
        rows.push(vec![
            level.name.clone(),
            index.to_string(),
            queue.map_or(0, |queue| queue.waiting.len()).to_string(),
            queue.map_or(0, |queue| queue.executing).to_string(),
            queue.map_or(0, |queue| queue.seats_in_use).to_string(),
            format!("{:.8}ss", queue.map_or(state.seats.virtual_now(), |q| q.next_dispatch)),
            sum(&|work| work.seats),
            sum(&|work| work.max_seats()),
            format!("{:.8}ss", queue.map_or(0.0, |queue| queue.waiting_work)),
        ]);
    }
}

fn requests(level: &Level, details: bool, rows: &mut Vec<Vec<String>>) {
    let state = level.state.lock();
    for (index, queue) in state.seats.queues() {
        for (place, waiting) in queue.waiting.iter().enumerate() {
            let ticket = &waiting.token;
            let mut row = vec![
                level.name.clone(),
                ticket.schema.name.clone(),
                index.to_string(),
                place.to_string(),
                ticket.distinguisher.clone(),
                base::time::rfc3339_nano(ticket.arrived),
                waiting.work.seats.to_string(),
                waiting.work.final_seats.to_string(),
                base::time::go_duration(Duration::from_secs_f64(waiting.work.extra)),
            ];
            if details {
                let info = &ticket.info;
                let version = match info.group.as_str() {
                    "" => info.version.clone(),
                    group => format!("{group}/{}", info.version),
                };
                row.extend([
                    ticket.user.clone(),
                    info.verb.to_string(),
                    info.path.clone(),
                    info.namespace.clone(),
                    info.name.clone(),
                    version,
                    info.resource.clone(),
                    info.subresource.clone(),
                ]);
            }
            rows.push(row);
        }
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Cells separated by commas, in columns.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        (longest + 2).max(WIDTH_MIN)
    };
    let widths: Vec<usize> = (0..columns.saturating_sub(1)).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            out.push_str(&format!("{:width$}", format!("{cell},")));
        }
        out.push_str(row.last().map_or("", String::as_str));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_columns_of_words_and_commas() {
        let rows = [strings(&["Name", "B", "C"]), strings(&["a-longer-name", "1", "2"])];
        assert_eq!(table(&rows), "Name,          B,      C\na-longer-name, 1,      2\n");
    }
}
