// The double of a CUDA driver: what its library (cuda.c) and its workload (gpu.c) share.
//
// NOT NVIDIA's driver. It has the state machine of the checkpoint API and nothing else, so that
// suites run on machines without a GPU. No claim about real GPUs rests on it.
//
// As with the real driver, the state of a process lies in its own memory and travels with its
// dump, and a thread of the process does the work, so that a frozen process does not answer:
//
//   library (in kybernate-cuda)                workload (in the container)
//   request=LOCK ──process_vm_writev──> block ──> thread: takes the GPU's mutex, state=LOCKED
//   waits for done == serial           <──────── done=serial, result
//
// "Device memory" is a file in DEVICES, which only a running process has: checkpoint moves it into
// the block, restore makes a new one. A counter in it tells whether state was lost.
#include <stdint.h>

#define BLOCK_ADDRESS 0x7e0000000000UL
#define BLOCK_MAGIC 0x4b5942444f55424cUL
#define DEVICES "/run/kybernate-double"
#define DEVICE_FILE "/dev/nvidia0"
#define MEMORY 65536

enum state { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum request { NONE, LOCK, CHECKPOINT, RESTORE, UNLOCK };

struct block {
    uint64_t magic;
    volatile uint32_t state;
    volatile uint32_t request;
    volatile uint32_t serial;
    volatile uint32_t done;
    volatile uint32_t result;
    volatile uint32_t beat;
    char file[128];
    unsigned char memory[MEMORY];
};
