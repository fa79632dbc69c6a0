// Prints the errno of a call that would set up io_uring: 14 (EFAULT) where a ring could be had.
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	long fd = syscall(SYS_io_uring_setup, 1, NULL);
	printf("%d\n", fd < 0 ? errno : 0);
	return 0;
}
