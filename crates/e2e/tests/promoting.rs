//! A stopped VM's disk as a new image, of every kind of disk there is.

use banger_e2e::in_world;

#[test]
fn what_a_vm_did_to_its_disk_is_in_the_image_it_is_promoted_to() {
    in_world(|world| {
        world.start("busybox", "vm");
        let script = "echo kept >/root/kept; mv /etc/passwd /etc/moved; rm -f /bin/vi; ln /root/kept /root/linked; \
                      chmod 600 /etc/group; mkfifo /root/pipe; sync";
        world.banger(["vm", "exec", "vm", "--", "sh", "-c", script]).succeeds();
        let refused = world.banger(["image", "promote", "vm", "--name", "promoted"]);
        refused.exits(1);
        assert!(refused.errors().contains("vm stop"), "{refused}");
        world.banger(["vm", "stop", "vm"]).succeeds();
        world.banger(["image", "promote", "vm", "--name", "promoted"]).succeeds();
        let look = "cat /root/kept /root/linked; stat -c '%h %a' /root/kept /etc/group; test -p /root/pipe && \
                    test ! -e /bin/vi && test ! -e /etc/passwd && test -s /etc/moved && echo good";
        world
            .banger(["vm", "run", "--rm", "--image", "promoted", "--", "sh", "-c", look])
            .succeeds()
            .prints_only("kept\nkept\n2 644\n1 600\ngood\n");
        // The VM goes on from where it was, and so may be promoted again.
        world.banger(["vm", "start", "vm"]).succeeds();
        world.banger(["vm", "exec", "vm", "--", "test", "-p", "/root/pipe"]).succeeds();
        world.banger(["vm", "stop", "vm"]).succeeds();
        let again = world.banger(["image", "promote", "vm", "--name", "promoted"]);
        again.exits(1);
        assert!(again.errors().contains("--replace"), "{again}");
    });
}
