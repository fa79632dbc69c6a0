//! Archives taken apart and put together again.

/// Frame sizes and the frames themselves of a whole archive.
pub struct Parts {
    /// Stored bytes and size of the content.
    pub frames: Vec<(Vec<u8>, u32)>,
}

impl Parts {
    pub fn of(archive: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(archive[at..at + 4].try_into().unwrap());
        let count = word(archive.len() - 9) as usize;
        let table = archive.len() - 9 - 12 * count;
        let mut at = 0;
        let frames = (0..count)
            .map(|row| {
                let size = word(table + 12 * row) as usize;
                let frame = archive[at..at + size].to_vec();
                at += size;
                (frame, word(table + 12 * row + 4))
            })
            .collect();
        assert_eq!(at, table - 8);
        Self { frames }
    }

    /// The archive of these frames with a seek table that fits them.
    pub fn archive(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .frames
            .iter()
            .flat_map(|(frame, _)| frame.clone())
            .collect();
        bytes.extend(0x184D_2A5E_u32.to_le_bytes());
        bytes.extend((self.frames.len() as u32 * 12 + 9).to_le_bytes());
        for (frame, content) in &self.frames {
            bytes.extend((frame.len() as u32).to_le_bytes());
            bytes.extend(content.to_le_bytes());
            bytes.extend(frame.last_chunk::<4>().unwrap());
        }
        bytes.extend((self.frames.len() as u32).to_le_bytes());
        bytes.push(0x80);
        bytes.extend(0x8F92_EAB1_u32.to_le_bytes());
        bytes
    }

    /// Puts other content into frame `number`, with good checksums.
    pub fn set(&mut self, number: usize, content: &[u8], level: i32) {
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        compressor.include_checksum(true).unwrap();
        self.frames[number] = (compressor.compress(content).unwrap(), content.len() as u32);
    }

    pub fn content(&self, number: usize) -> Vec<u8> {
        let (frame, size) = &self.frames[number];
        zstd::bulk::decompress(frame, *size as usize).unwrap()
    }
}
