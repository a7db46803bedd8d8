//! The options of a container's log: read from the query, checked, and written for the
//! kubelet (`v1.PodLogOptions`).

use crate::error::{ApiError, Cause, Result};
use crate::serve::request::Query;

#[derive(Debug, Default, PartialEq)]
pub struct LogOptions {
    follow: bool,
    previous: bool,
    timestamps: bool,
    since_seconds: Option<i64>,
    /// RFC 3339.
    since_time: Option<String>,
    tail_lines: Option<i64>,
    limit_bytes: Option<i64>,
    stream: Option<String>,
    /// The kubelet's certificate is not looked at.
    pub insecure: bool,
}

impl LogOptions {
    /// Reads a query.
    ///
    /// # Errors
    /// 400 for what is no number or time.
    pub fn read(query: &Query) -> Result<Self> {
        let number = |name: &str| match query.set(name) {
            None => Ok(None),
            Some(text) => text.parse::<i64>().map(Some).map_err(|_| {
                let wrong = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
                ApiError::bad_request(wrong)
            }),
        };
        let since_time = match query.set("sinceTime") {
            None => None,
            Some(text) => {
                Some(base::time::parse(text).map(base::time::rfc3339).ok_or_else(|| {
                    let layout = "2006-01-02T15:04:05Z07:00";
                    ApiError::bad_request(format!(
                        "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
                    ))
                })?)
            }
        };
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            since_seconds: number("sinceSeconds")?,
            since_time,
            tail_lines: number("tailLines")?,
            limit_bytes: number("limitBytes")?,
            stream: query.set("stream").map(str::to_string),
            insecure: query.flag("insecureSkipTLSVerifyBackend"),
        })
    }

    /// # Errors
    /// 422 with every option that is out of range.
    pub fn check(&self, pod: &str) -> Result<()> {
        let mut causes = Vec::new();
        let mut invalid = |field: &str, value: i64, why: &str| {
            causes.push(Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {value}: {why}"),
                field: field.into(),
            });
        };
        if let Some(lines) = self.tail_lines.filter(|lines| *lines < 0) {
            invalid("tailLines", lines, "must be greater than or equal to 0");
        }
        if let Some(bytes) = self.limit_bytes.filter(|bytes| *bytes < 1) {
            invalid("limitBytes", bytes, "must be greater than 0");
        }
        match (self.since_seconds, &self.since_time) {
            (Some(_), Some(_)) => {
                let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
                causes.push(Cause::forbidden("", why));
            }
            (Some(seconds), None) if seconds < 1 => {
                invalid("sinceSeconds", seconds, "must be greater than 0");
            }
            _ => {}
        }
        if self.stream.is_some() {
            // Upstream has it behind a gate that is closed.
            causes.push(Cause::forbidden("stream", "may not be specified"));
        }
        if causes.is_empty() {
            return Ok(());
        }
        // The empty field is named, too.
        let said: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let all = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let text = format!("PodLogOptions {pod:?} is invalid: {all}");
        Err(ApiError::new(422, "Invalid", text)
            .about("", "PodLogOptions", pod)
            .with_causes(&causes))
    }

    /// The query of the kubelet's own API.
    pub fn query(&self) -> String {
        let mut out = Vec::new();
        for (name, on) in
            [("follow", self.follow), ("previous", self.previous), ("timestamps", self.timestamps)]
        {
            if on {
                out.push(format!("{name}=true"));
            }
        }
        for (name, number) in [
            ("limitBytes", self.limit_bytes),
            ("sinceSeconds", self.since_seconds),
            ("tailLines", self.tail_lines),
        ] {
            out.extend(number.map(|number| format!("{name}={number}")));
        }
        out.extend(self.since_time.as_ref().map(|time| format!("sinceTime={time}")));
        out.sort();
        out.join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<LogOptions> {
        LogOptions::read(&Query::parse(Some(query)))
    }

    #[test]
    fn options_reach_the_kubelet_under_its_names() {
        for (query, expected) in [
            ("", ""),
            ("container=c&follow=true&pretty=true", "follow=true"),
            ("tailLines=0&limitBytes=5&timestamps=1", "limitBytes=5&tailLines=0&timestamps=true"),
            ("sinceTime=2026-01-02T03:04:05%2B01:00", "sinceTime=2026-01-02T02:04:05Z"),
            ("previous=true&sinceSeconds=7", "previous=true&sinceSeconds=7"),
        ] {
            assert_eq!(read(query).unwrap().query(), expected, "{query}");
        }
        assert!(read("insecureSkipTLSVerifyBackend=true").unwrap().insecure);
    }

    #[test]
    fn wrong_options_are_refused_in_upstreams_words() {
        for (query, code, expected) in [
            ("tailLines=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
            (
                "sinceTime=now",
                400,
                "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"",
            ),
            (
                "tailLines=-1",
                422,
                "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                "limitBytes=0&sinceSeconds=0",
                422,
                "PodLogOptions \"p\" is invalid: [limitBytes: Invalid value: 0: must be greater than 0, sinceSeconds: Invalid value: 0: must be greater than 0]",
            ),
            (
                "sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z",
                422,
                "PodLogOptions \"p\" is invalid: : Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
            (
                "stream=Stdout",
                422,
                "PodLogOptions \"p\" is invalid: stream: Forbidden: may not be specified",
            ),
        ] {
            let error = read(query).and_then(|options| options.check("p")).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (code, expected), "{query}");
        }
    }
}
