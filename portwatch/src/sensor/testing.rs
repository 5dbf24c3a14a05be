//! Records as the kernel side writes them, and the decoder for them: for measuring.

use bytemuck::Zeroable as _;
use portwatch_common::{FAMILY_IPV4, Image, PROTOCOL_UDP, Report, image_flags, kind, known};

use super::decode::{Clock, Decoder};
use crate::model::Event;

const PID: u32 = 812;
const START: u64 = 5_000_000_000;

/// A bind on 976/udp by a process whose image is known.
pub struct Records {
    decoder: Decoder,
    clock: Clock,
    report: Report,
    image: Image,
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
            image: image(),
        };
        records.image();
        records
    }
}

/// `nc -u -l 976`, started as /usr/bin/nc.
fn image() -> Image {
    let mut image = Image {
        start_ns: START,
        tgid: PID,
        parent: 1,
        flags: image_flags::EXE,
        ..Image::zeroed()
    };
    let put = |array: &mut [u8], bytes: &[u8]| -> u32 {
        for (to, from) in array.iter_mut().zip(bytes) {
            *to = *from;
        }
        bytes.len() as u32
    };
    image.exe_len = put(&mut image.exe, b"nc\0bin\0usr\0");
    image.execfn_len = put(&mut image.execfn, b"/usr/bin/nc\0");
    image.args_len = put(&mut image.args, b"nc\0-u\0-l\x00976\0");
    image
}

impl Records {
    /// Decodes the report.
    pub fn report(&mut self) -> Option<Event> {
        let bytes = bytemuck::bytes_of(&self.report);
        self.decoder.decode(bytes, self.clock)
    }

    /// Decodes the image.
    pub fn image(&mut self) -> Option<Event> {
        let bytes = bytemuck::bytes_of(&self.image);
        self.decoder.decode(bytes, self.clock)
    }
}
