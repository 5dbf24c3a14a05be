//! Records as the BPF programs write them, and the decoder for them: for measuring.
#![forbid(unsafe_code)]

use bytemuck::Zeroable as _;
use portwatch_common::{ExecInfo, FAMILY_IPV4, PROTOCOL_UDP, Report, exec_info_flags, kind, known};

use super::ring::{Clock, Decoder};
use crate::model::Event;

const PID: u32 = 812;
const START: u64 = 5_000_000_000;

/// A bind on 976/udp by a process whose exec info is known.
pub struct Records {
    decoder: Decoder,
    clock: Clock,
    report: Report,
    exec_info: ExecInfo,
}

impl Default for Records {
    fn default() -> Self {
        let mut records = Self {
            decoder: Decoder::new(),
            clock: Clock::now(),
            report: Report {
                cookie: 8193,
                netns_cookie: 1,
                netns_inode: 5,
                cgroup_id: 7,
                start_ns: START,
                tgid: PID,
                tid: PID,
                local_address: [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                local_port: 976,
                kind: kind::BIND,
                family: FAMILY_IPV4,
                protocol: PROTOCOL_UDP,
                known: known::TASK | known::NETNS | known::START,
                comm: *b"nc\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                ..Report::zeroed()
            },
            exec_info: exec_info(),
        };
        records.exec_info();
        records
    }
}

/// `nc -u -l 976`, started as /usr/bin/nc.
fn exec_info() -> ExecInfo {
    let mut info = ExecInfo {
        start_ns: START,
        tgid: PID,
        parent: 1,
        flags: exec_info_flags::EXE,
        ..ExecInfo::zeroed()
    };
    let put = |array: &mut [u8], bytes: &[u8]| -> u32 {
        for (to, from) in array.iter_mut().zip(bytes) {
            *to = *from;
        }
        bytes.len() as u32
    };
    info.exe_len = put(&mut info.exe, b"nc\0bin\0usr\0");
    info.execfn_len = put(&mut info.execfn, b"/usr/bin/nc\0");
    info.args_len = put(&mut info.args, b"nc\0-u\0-l\x00976\0");
    info
}

impl Records {
    /// Decodes bytes as they come out of the ring.
    pub fn decode(&mut self, bytes: &[u8]) -> Option<Event> {
        self.decoder.decode(bytes, self.clock)
    }

    /// The bytes of an exec info and of a report of its process.
    #[must_use]
    pub fn bytes(&self) -> [&[u8]; 2] {
        [
            bytemuck::bytes_of(&self.exec_info),
            bytemuck::bytes_of(&self.report),
        ]
    }

    /// Decodes the report.
    pub fn report(&mut self) -> Option<Event> {
        let bytes = bytemuck::bytes_of(&self.report);
        self.decoder.decode(bytes, self.clock)
    }

    /// Decodes the exec info.
    pub fn exec_info(&mut self) -> Option<Event> {
        let bytes = bytemuck::bytes_of(&self.exec_info);
        self.decoder.decode(bytes, self.clock)
    }
}
