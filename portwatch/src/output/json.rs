//! One JSON object per line.

use super::Format;
use crate::alert::Alert;

pub(super) struct Json;

impl Format for Json {
    fn write(&self, alert: &Alert, line: &mut Vec<u8>) {
        let start = line.len();
        // Maps with string keys into memory do not fail; half an object would be worse than none.
        if serde_json::to_writer(&mut *line, alert).is_err() {
            line.truncate(start);
            return;
        }
        line.push(b'\n');
    }
}
